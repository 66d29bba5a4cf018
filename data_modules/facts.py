"""Questions that nobody can answer without their context: generated facts about invented combinations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from data_modules.randomness import generator
from registries.registry import UserError

NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Irene", "Jack", "Kate", "Leo", "Maria",
    "Nina", "Oscar", "Paul", "Rosa", "Sam", "Tina", "Victor",
)  # fmt: skip
CITIES = (
    "Paris", "London", "Rome", "Berlin", "Madrid", "Vienna", "Tokyo", "Cairo", "Boston", "Chicago", "Dublin",
    "Athens", "Moscow", "Delhi", "Sydney", "Toronto", "Lima", "Oslo", "Prague", "Seattle",
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A question with the context that answers it.

    Attributes:
        context: the facts, one sentence each.
        question: the question and the beginning of its answer, up to the city's name.
        answers: names of cities to choose from, each with the space before it.
        right: index of the right answer.
    """

    context: str
    question: str
    answers: tuple[str, ...]
    right: int


def make_questions(
    count: int, facts: int, choices: int, first_token: Callable[[str], int], seed: int = 0
) -> list[Question]:
    """Questions about who lives where.

    Args:
        facts: people in each context. With one, a model must have noticed the city; with several, also who lives there.
        choices: answers to choose from, so that guessing is right in 1 / choices; the context's cities come first.
        first_token: the first token of an answer; answers that begin with the same token are never offered together.

    Raises:
        UserError: there are fewer people, or fewer cities that this tokenizer tells apart by their first token.
    """
    cities = list({first_token(f" {city}"): city for city in CITIES}.values())
    for key, number, limit in (("facts", facts, min(len(NAMES), len(cities))), ("choices", choices, len(cities))):
        if number > limit:
            raise UserError(f"communication.{key}={number} is more than the {limit} that this tokenizer can tell apart")
    draws = generator("facts", seed)

    def shuffled(items: Sequence[str]) -> list[str]:
        return [items[index] for index in torch.randperm(len(items), generator=draws).tolist()]

    questions = []
    for _ in range(count):
        names, homes = shuffled(NAMES)[:facts], shuffled(cities)
        person = int(torch.randint(facts, (), generator=draws))
        wrong = [city for city in homes if city != homes[person]][: choices - 1]
        answers = shuffled([homes[person], *wrong])
        context = " ".join(f"{name} lives in {city}." for name, city in zip(names, homes[:facts], strict=True))
        question = f" Where does {names[person]} live? {names[person]} lives in"
        right = answers.index(homes[person])
        questions.append(Question(context, question, tuple(f" {city}" for city in answers), right))
    return questions
