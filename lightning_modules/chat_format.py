"""How a conversation becomes the tokens that a model continues with an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from data_modules.encoding import encode_filled, encode_prompt, encode_texts
from data_modules.instructions import Template


@dataclass(frozen=True)
class Turn:
    """What the user said, and the answer; None where it is asked for."""

    message: str
    answer: str | None = None


class ChatFormat(Protocol):
    """Makes tokens of turns, the last of which has no answer yet."""

    def __call__(self, turns: Sequence[Turn]) -> list[int]:
        """What the model continues."""
        ...


@dataclass(frozen=True)
class ModelTemplate:
    """The chat template that a tokenizer brings."""

    tokenizer: Any

    def __call__(self, turns: Sequence[Turn]) -> list[int]:
        messages = []
        for turn in turns:
            messages.append({"role": "user", "content": turn.message})
            if turn.answer is not None:
                messages.append({"role": "assistant", "content": turn.answer})
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


@dataclass(frozen=True)
class InstructionTemplate:
    """The template of the instruction data that a model was trained on; answers end with the end token, as there."""

    tokenizer: Any
    template: Template
    start: int | None

    def __call__(self, turns: Sequence[Turn]) -> list[int]:
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        tokens: list[int] = []
        for index, turn in enumerate(turns):
            parts = self.template.parts(instruction=turn.message)
            (prompt,) = encode_filled(self.tokenizer, [parts], self.start if index == 0 else None)
            (answer,) = encode_texts(self.tokenizer, [turn.answer or ""])
            tokens += prompt + ([] if turn.answer is None else answer + end)
        return tokens


@dataclass(frozen=True)
class PlainText:
    """Messages and answers as paragraphs, for models that know no roles: they continue the text."""

    tokenizer: Any
    start: int | None

    def __call__(self, turns: Sequence[Turn]) -> list[int]:
        paragraphs = [text for turn in turns for text in (turn.message, turn.answer) if text]
        return encode_prompt(self.tokenizer, "\n\n".join(paragraphs) + "\n\n", self.start)


def chat_format(tokenizer: Any, template: Template | None, start: int | None) -> tuple[ChatFormat, str]:
    """The format that a model was made for, and what it is, in words.

    Args:
        template: of the instruction data that the model was trained on; None: it was not.
        start: the token that the model is given before every text; None: none.
    """
    if template is not None:
        return InstructionTemplate(tokenizer, template, start), "the template of its instruction data"
    if getattr(tokenizer, "chat_template", None):
        return ModelTemplate(tokenizer), "its own chat template"
    return PlainText(tokenizer, start), "plain text: this model knows no roles, and continues what is written"


def fitting_turns(form: ChatFormat, turns: Sequence[Turn], room: int | None) -> list[Turn]:
    """The newest turns that fit into so many tokens, whole ones; none where the last one alone does not."""
    for first in range(len(turns)):
        if room is None or len(form(turns[first:])) <= room:
            return list(turns[first:])
    return []
