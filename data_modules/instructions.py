"""Instruction data: records -> prompts with responses. What makes blocks of them is `instruction_blocks`."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from data_modules.conversations import ABSENT, Place, look_up
from data_modules.tables import as_text, columns_of, first_few
from registries.registry import UserError, nearest

LossOn = Literal["response", "all"]
TooLong = Literal["drop", "prompt", "response"]

# The usual names of the columns, best first; `look_up` says what a dot does. A record has the first that is filled.
COLUMNS = {
    "instruction": ("instruction", "question", "query", "prompt.user", "messages.user", "conversations.user"),
    "input": ("input", "context", "instances.0.input"),
    "response": (
        "output",
        "response",
        "answer",
        "completion.assistant",
        "completion",
        "instances.0.output",
        "messages.assistant",
        "conversations.assistant",
    ),
    "system": ("system", "system_prompt", "prompt.system", "messages.system", "conversations.system"),
}
OPTIONAL = ("input", "system")  # a table may be without them
SPEAKERS = {"instruction": "user", "response": "assistant"}  # whose turn a field may be
COMPLETE = "prompt"  # a column of this name holds whole prompts, which no template is put around

ESCAPE = re.compile(r"\\([ntr\\])")
ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


@dataclass(frozen=True)
class Example:
    """A prompt and the response to it. The name decides the split; those of one prompt (`text`) go together.

    Args:
        parts: of the prompt: what the template says and what a field says, in turns; none where the prompt is whole.
    """

    name: str
    prompt: str
    response: str
    parts: tuple[str, ...] = field(default=(), compare=False)

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
        return "".join(self.parts(**fields))

    def parts(self, **fields: str) -> tuple[str, ...]:
        """The prompt in parts: what the template says and what a field says, in turns."""
        chosen, formatter = (
            self.prompt_with_input if fields.get("input", "").strip() else self.prompt,
            string.Formatter(),
        )
        parts = []
        for literal, name, spec, conversion in formatter.parse(chosen):
            value = "" if name is None else formatter.convert_field(fields.get(name, ""), conversion)
            parts += [literal, format(value, spec or "")]
        return tuple(parts)

    def names(self, field: str) -> bool:
        """Whether one of the two texts asks for a field."""
        return f"{{{field}" in self.prompt or f"{{{field}" in self.prompt_with_input


def read_template(prompt: str, prompt_with_input: str) -> Template:
    r"""A template as it is typed: \n, \t, \r and \\ are a line end, a tab, a carriage return and a backslash.

    In YAML they are so within double quotes; on a command line nothing else turns them into these characters.
    """
    return Template(*(ESCAPE.sub(lambda match: ESCAPED[match[1]], text) for text in (prompt, prompt_with_input)))


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


class Reading(NamedTuple):
    """What the records of a table gave.

    Attributes:
        examples: of the records that have a response.
        counts: how many examples have `whole prompts`, `no instruction`, `no input`, `further turns` that are not
            read, a `system text` that no template names; how many records were left out as they have `no response`, or
            a `strange turn` where the user's or the assistant's was named.
    """

    examples: list[Example]
    counts: Counter


def read_examples(
    rows: Sequence[Mapping[str, Any]], label: str, fields: Mapping[str, str] | None, template: Template
) -> Reading:
    """The examples of the rows of a table.

    Each record is read by itself, since a table may be put together from several: of the usual columns of a field, it
    has the first that is filled, and where it has no instruction but a whole prompt, that is its prompt.

    Args:
        fields: field -> column, where that is not one of the usual names (`COLUMNS`).

    Raises:
        UserError: a column is in no row, or holds something else than text.
    """
    if not rows:
        return Reading([], Counter())
    reading, errors = Reading([], Counter()), []
    columns = _columns(rows, fields or {}, label)
    unread = () if template.names("system") else ("system",)
    for index, row in enumerate(rows):
        places = {field: _first_filled(row, names) for field, names in columns.items()}
        if not _is_whole(places, fields or {}):
            places.pop(COMPLETE, None)
        try:
            values = {field: _text(places[field], f"{label}:{index}") for field in places if field not in unread}
        except UserError as error:
            errors.append(f"{error}. Write it as text, or name another column: dataset.fields.<field>=<column>")
            continue
        reason = _unusable(places)
        if reason is None:
            reading.examples.append(_example(f"{label}:{index}", values, template))
        reading.counts.update([reason] if reason else _oddities(places, "system" in unread))
    if errors:
        raise UserError(first_few(errors))
    return reading


def _is_filled(places: Mapping[str, Place], field: str) -> bool:
    return field in places and places[field].filled


def _is_whole(places: Mapping[str, Place], fields: Mapping[str, str]) -> bool:
    """Whether a record's prompt is whole: where that is said, and where there is one and no instruction."""
    return COMPLETE in fields or (_is_filled(places, COMPLETE) and not _is_filled(places, "instruction"))


def _example(name: str, values: Mapping[str, str], template: Template) -> Example:
    if COMPLETE in values:
        return Example(name, values[COMPLETE], values["response"])
    parts = template.parts(**values)
    return Example(name, "".join(parts), values["response"], parts)


def _unusable(places: Mapping[str, Place]) -> str | None:
    """Why a record is left out, if it is."""
    if any(places[field].speaker not in (None, speaker) for field, speaker in SPEAKERS.items() if field in places):
        return "strange turn"
    return None if places["response"].filled else "no response"


def _oddities(places: Mapping[str, Place], without_system: bool) -> list[str]:
    """What the user should know of an example; the template may be one without the system's text."""
    whole = COMPLETE in places
    turns = {id(place.turns): len(place.turns) for place in places.values() if place.turns is not None}
    read = {(id(place.turns), place.speaker) for place in places.values() if place.turns is not None}
    oddities = {
        "whole prompts": whole,
        "no instruction": not _is_filled(places, COMPLETE if whole else "instruction"),
        "no input": not whole and not _is_filled(places, "input"),
        "further turns": sum(turns.values()) > len(read),
        "system text": _is_filled(places, "system") and (whole or without_system),
    }
    return [oddity for oddity, is_so in oddities.items() if is_so]


def _columns(rows: Sequence[Mapping[str, Any]], fields: Mapping[str, str], label: str) -> dict[str, list[str]]:
    """Field -> the columns that may hold it, best first: those of its usual ones, or the named one, that a row has.

    Raises:
        UserError: a field that must be there has none.
    """
    usual = {COMPLETE: (COMPLETE,), "response": COLUMNS["response"]} if COMPLETE in fields else dict(COLUMNS)
    if "instruction" not in fields:
        usual[COMPLETE] = (COMPLETE,)
    looked_for = {**usual, **{field: (column,) for field, column in fields.items()}}
    there = columns_of(rows)
    columns = {field: _present(rows, there, names) for field, names in looked_for.items()}
    optional = {*OPTIONAL, COMPLETE, *(["instruction"] if columns.get(COMPLETE) else [])} - set(fields)
    missing = [
        f"{label} has no column for the {field} (looked for {', '.join(names)}); it has "
        f"{', '.join(map(str, there))}. Name it: dataset.fields.{field}=<column>"
        for field, names in looked_for.items()
        if not columns[field] and field not in optional
    ]
    if missing:
        raise UserError(missing)
    return {field: names for field, names in columns.items() if names}


def _present(rows: Sequence[Mapping[str, Any]], there: Sequence[str], names: Sequence[str]) -> list[str]:
    """The columns of these names that a row has."""
    likely = [name for name in names if name in there or name.split(".")[0] in there]
    return [name for name in likely if any(look_up(row, name).value is not ABSENT for row in rows)]


def _first_filled(row: Mapping[str, Any], names: Sequence[str]) -> Place:
    places = [look_up(row, name) for name in names]
    return next((place for place in places if place.filled), places[0])


def _text(place: Place, label: str) -> str:
    return "" if place.value is ABSENT else as_text(place.value, place.column, label)
