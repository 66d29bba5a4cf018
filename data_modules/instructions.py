"""Instruction data: records -> prompts with responses. What makes blocks of them is `instruction_blocks`."""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from registries.registry import UserError, nearest

LossOn = Literal["response", "all"]
TooLong = Literal["drop", "prompt", "response"]

# The usual names of the columns, best first; a dot goes into a nested value. `read_examples` looks at every row.
COLUMNS = {
    "instruction": ("instruction", "question", "query"),
    "input": ("input", "context", "instances.0.input"),
    "response": ("output", "response", "answer", "completion", "instances.0.output"),
}
COMPLETE = "prompt"  # a column of this name holds whole prompts, which no template is put around


@dataclass(frozen=True)
class Example:
    """A prompt and the response to it. The name decides the split; those of one prompt (`text`) go together."""

    name: str
    prompt: str
    response: str

    @property
    def text(self) -> str:
        return self.prompt


@dataclass(frozen=True)
class Template:
    """How a record becomes a prompt: text with the names of fields in braces.

    Args:
        prompt: for records without an input.
        prompt_with_input: for records with one.
    """

    prompt: str
    prompt_with_input: str

    def __call__(self, **fields: str) -> str:
        """The prompt of a record; a field that it does not have is empty."""
        chosen = self.prompt_with_input if fields.get("input", "").strip() else self.prompt
        return chosen.format_map(defaultdict(str, fields))


@dataclass(frozen=True)
class InstructionSettings:
    """How examples become blocks.

    Args:
        loss_on: `response`: only its tokens count, with the end token; `all`: the prompt's too.
        packing: several examples in a block, none of which sees another; else one example in each.
        too_long: what happens to an example that is longer than a block: `drop` it, cut the start of its `prompt`, or
            cut the end of its `response`. All of it is counted and told.
    """

    loss_on: LossOn
    packing: bool
    too_long: TooLong


@dataclass(frozen=True)
class InstructionData:
    """What an instruction dataset gives.

    Args:
        examples: by split, and all in order under `all`.
        template: that made the prompts; None where the records hold whole prompts.
        settings: how they become blocks.
        notes: what the user should know of records that were left out, one line each.
    """

    examples: Mapping[str, Sequence[Example]]
    template: Template | None
    settings: InstructionSettings
    notes: Sequence[str] = ()

    def as_prompt(self, instruction: str) -> str:
        """An instruction as the prompts of this data are written."""
        return self.template(instruction=instruction) if self.template else instruction


def template_errors(template: Template, fields: Sequence[str]) -> list[str]:
    """A message for each name in the template that is no field of the records."""
    errors = []
    for key, text in (("prompt", template.prompt), ("prompt_with_input", template.prompt_with_input)):
        try:
            names = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
        except ValueError as error:
            errors.append(f"dataset.{key} is no template: {error}; a brace of its own is written twice")
            continue
        strange = [name for name in names if name not in fields]
        errors += [
            f"dataset.{key} names {{{name}}}, which is no field of the records{nearest(name, fields)} Allowed: "
            f"{', '.join(fields)}; dataset.fields names more"
            for name in strange
        ]
        if strange:
            continue
        if not names:
            errors.append(f"dataset.{key}={text!r} names no field: every prompt would be the same. Use {{instruction}}")
        try:
            text.format_map(dict.fromkeys(names, "text"))  # other than the names: what stands after them
        except (ValueError, KeyError, IndexError, AttributeError) as error:
            errors.append(
                f"dataset.{key}={text!r} is no template: {error}; names in braces stand alone, {{instruction}}"
            )
    return errors


def read_examples(
    rows: Sequence[Mapping[str, Any]], label: str, fields: Mapping[str, str] | None, template: Template
) -> tuple[list[Example], int, bool]:
    """The examples of the rows of a table, how many rows had no response, and whether prompts were whole.

    Args:
        fields: field -> column, where that is not one of the usual names (`COLUMNS`).

    Raises:
        UserError: a column is not there.
    """
    if not rows:
        return [], 0, False
    places = _columns(max(rows, key=_filled), fields or {}, label)
    examples = []
    for index, row in enumerate(rows):
        values = {field: _text(row, column, f"{label}:{index}") for field, column in places.items()}
        response = values.pop("response")
        if response.strip():
            prompt = values[COMPLETE] if COMPLETE in places else template(**values)
            examples.append(Example(f"{label}:{index}", prompt, response))
    return examples, len(rows) - len(examples), COMPLETE in places


def _filled(row: Mapping[str, Any]) -> int:
    """How many of a row's columns hold something: the fullest row tells best what columns there are."""
    return sum(1 for value in row.values() if value)


def _columns(row: Mapping[str, Any], fields: Mapping[str, str], label: str) -> dict[str, str]:
    """Field -> column of a table, from one of its rows."""
    places, missing = {}, []
    has_instruction = "instruction" in fields or any(
        _value(row, each) is not _ABSENT for each in COLUMNS["instruction"]
    )
    if COMPLETE in fields or (COMPLETE in row and not has_instruction):
        wanted = {COMPLETE: (COMPLETE,), "response": COLUMNS["response"]}
    else:
        wanted = dict(COLUMNS)
    for field, column in fields.items():
        wanted[field] = (column,)
    for field, columns in wanted.items():
        found = next((column for column in columns if _value(row, column) is not _ABSENT), None)
        if found is not None:
            places[field] = found
        elif field != "input" or field in fields:
            missing.append(
                f"{label} has no column for the {field} (looked for {', '.join(columns)}); it has "
                f"{', '.join(map(str, row))}. Name it: dataset.fields.{field}=<column>"
            )
    if missing:
        raise UserError(missing)
    return places


_ABSENT = object()


def _value(row: Any, column: str) -> Any:
    """The value at a dotted path through mappings and lists."""
    for key in column.split("."):
        try:
            row = row[int(key)] if isinstance(row, Sequence) and not isinstance(row, str) else row[key]
        except (KeyError, IndexError, ValueError, TypeError):
            return _ABSENT
    return row


def _text(row: Mapping[str, Any], column: str, label: str) -> str:
    value = _value(row, column)
    if value is None or value is _ABSENT:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{label}: column {column!r} holds {type(value).__name__}, not text; name another one")
    return value
