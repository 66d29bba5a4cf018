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
PLACES = (
    "Paris", "London", "Rome", "Berlin", "Madrid", "Vienna", "Tokyo", "Cairo", "Boston", "Chicago", "Dublin",
    "Athens", "Moscow", "Delhi", "Sydney", "Toronto", "Lima", "Oslo", "Prague", "Seattle",
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A question with the context that answers it.

    Attributes:
        context: what is known.
        question: its beginning, up to where the answer follows.
        answers: places to choose from, each with the space before it.
        right: which of them is the answer.
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
        facts: people in each context. With one, a model needs to have noticed the place; with more, whose it is.
        choices: answers to choose from, so that guessing is right in 1 / choices; the context's own come first.
        first_token: of an answer; answers with the same one are not asked for together.

    Raises:
        UserError: there are not so many people, or places that this tokenizer tells apart by their first token.
    """
    places = list({first_token(f" {place}"): place for place in PLACES}.values())
    for key, number, most in (("facts", facts, min(len(NAMES), len(places))), ("choices", choices, len(places))):
        if number > most:
            raise UserError(f"communication.{key}={number} is more than the {most} that this tokenizer can tell apart")
    draws = generator("facts", seed)

    def shuffled(items: Sequence[str]) -> list[str]:
        return [items[index] for index in torch.randperm(len(items), generator=draws).tolist()]

    questions = []
    for _ in range(count):
        names, homes = shuffled(NAMES)[:facts], shuffled(places)
        asked = int(torch.randint(facts, (), generator=draws))
        others = [home for home in homes if home != homes[asked]][: choices - 1]
        answers = shuffled([homes[asked], *others])
        context = " ".join(f"{name} lives in {home}." for name, home in zip(names, homes[:facts], strict=True))
        question = f" Where does {names[asked]} live? {names[asked]} lives in"
        right = answers.index(homes[asked])
        questions.append(Question(context, question, tuple(f" {home}" for home in answers), right))
    return questions
