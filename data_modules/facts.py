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
        answers: the places that the context names, each with the space before it.
        right: which of them is the answer.
    """

    context: str
    question: str
    answers: tuple[str, ...]
    right: int


def make_questions(count: int, facts: int, first_token: Callable[[str], int], seed: int = 0) -> list[Question]:
    """Questions about who lives where; `facts` people in each context, so that guessing is right in 1 / facts.

    Args:
        first_token: of an answer; answers with the same one are not asked for together.

    Raises:
        UserError: there are not so many people, or places that this tokenizer tells apart by their first token.
    """
    places = list({first_token(f" {place}"): place for place in PLACES}.values())
    most = min(len(NAMES), len(places))
    if facts > most:
        raise UserError(f"communication.facts={facts} is more than the {most} that this tokenizer can tell apart")
    draws = generator("facts", seed)

    def some(items: Sequence[str]) -> list[str]:
        return [items[index] for index in torch.randperm(len(items), generator=draws)[:facts].tolist()]

    questions = []
    for _ in range(count):
        names, homes = some(NAMES), some(places)
        right = int(torch.randint(facts, (), generator=draws))
        context = " ".join(f"{name} lives in {home}." for name, home in zip(names, homes, strict=True))
        question = f" Where does {names[right]} live? {names[right]} lives in"
        questions.append(Question(context, question, tuple(f" {home}" for home in homes), right))
    return questions
