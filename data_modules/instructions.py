"""Instruction data: records -> prompts with responses. `instruction_blocks` makes blocks of them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from data_modules.conversations import ABSENT, Entry, look_up
from data_modules.tables import as_text, columns_of, first_few
from registries.registry import UserError, nearest

LossOn = Literal["response", "all"]
TooLong = Literal["drop", "prompt", "response"]

# Field -> the usual names of its column, best first (`look_up` tells what a dot means). The first filled one is read.
USUAL_COLUMNS = {
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
OPTIONAL = ("input", "system")  # fields that a table may lack
SPEAKERS = {"instruction": "user", "response": "assistant"}  # field of a conversation -> whose turn it must be
WHOLE_PROMPT = "prompt"  # a column of this name holds whole prompts, which are put into no template

ESCAPE = re.compile(r"\\([ntr\\])")
ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


@dataclass(frozen=True)
class Example:
    """A prompt and the response to it. The name decides the split; examples of one prompt (`text`) go together.

    Args:
        parts: the prompt as texts of the template and values of fields, in turns; empty for a whole prompt.
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
        prompt: text for records without an input.
        prompt_with_input: text for records with an input.
    """

    prompt: str
    prompt_with_input: str

    def __call__(self, **fields: str) -> str:
        """The prompt of a record; a field that the record lacks is empty."""
        return "".join(self.parts(**fields))

    def parts(self, **fields: str) -> tuple[str, ...]:
        """The prompt in parts: texts of the template and values of fields, in turns."""
        text = self.prompt_with_input if fields.get("input", "").strip() else self.prompt
        formatter, parts = string.Formatter(), []
        for literal, name, spec, conversion in formatter.parse(text):
            value = "" if name is None else formatter.convert_field(fields.get(name, ""), conversion)
            parts += [literal, format(value, spec or "")]
        return tuple(parts)

    def names(self, field: str) -> bool:
        """Whether one of the two texts names a field."""
        return f"{{{field}" in self.prompt or f"{{{field}" in self.prompt_with_input


def read_template(prompt: str, prompt_with_input: str) -> Template:
    r"""A template from texts in which \n, \t, \r and \\ stand for line end, tab, carriage return and backslash.

    In YAML, double quotes do this already; on a command line nothing else does.
    """
    return Template(*(ESCAPE.sub(lambda match: ESCAPED[match[1]], text) for text in (prompt, prompt_with_input)))


@dataclass(frozen=True)
class InstructionSettings:
    """How examples become blocks.

    Args:
        loss_on: `response`: only its tokens and the end token are scored; `all`: the prompt too.
        packing: several examples in a block, none of which sees another; False: one example in each block.
        too_long: what happens to an example that is longer than a block: `drop` it, cut the start of its `prompt`, or
            cut the end of its `response`. The user is told how many there were.
    """

    loss_on: LossOn
    packing: bool
    too_long: TooLong


@dataclass(frozen=True)
class InstructionData:
    """The corpus of an instruction dataset.

    Args:
        examples: split -> its examples; `all` -> all examples in order.
        template: the template of the prompts; None where the records hold whole prompts.
        settings: how examples become blocks.
        notes: messages to the user about unusual records, one line each.
    """

    examples: Mapping[str, Sequence[Example]]
    template: Template | None
    settings: InstructionSettings
    notes: Sequence[str] = ()

    def as_prompt(self, instruction: str) -> str:
        """An instruction, put into the template of this data if there is one."""
        return self.template(instruction=instruction) if self.template else instruction


def template_errors(template: Template, fields: Sequence[str]) -> list[str]:
    """Messages for all that is wrong with a template whose records have these fields."""
    errors = []
    for key, text in (("prompt", template.prompt), ("prompt_with_input", template.prompt_with_input)):
        try:
            names = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
        except ValueError as error:
            errors.append(f"dataset.{key} is no template: {error}; a brace of its own is written twice")
            continue
        unknown = [name for name in names if name not in fields]
        errors += [
            f"dataset.{key} names {{{name}}}, which is no field of the records{nearest(name, fields)} Allowed: "
            f"{', '.join(fields)}; dataset.fields names more"
            for name in unknown
        ]
        if unknown:
            continue
        if not names:
            errors.append(f"dataset.{key}={text!r} names no field: every prompt would be the same. Use {{instruction}}")
        try:
            text.format_map(dict.fromkeys(names, "text"))  # finds errors behind the names, such as {input:d}
        except (ValueError, KeyError, IndexError, AttributeError) as error:
            errors.append(
                f"dataset.{key}={text!r} is no template: {error}; names in braces stand alone, {{instruction}}"
            )
    return errors


class Reading(NamedTuple):
    """The examples of a table's records.

    Attributes:
        examples: one for each record that has a response.
        counts: how many examples have `whole prompts`, `no instruction`, `no input`, `further turns` that are not
            read, or a `system text` that no template names; and how many records were left out because they have
            `no response`, or a `strange turn` where a turn of the user or of the assistant was asked for.
    """

    examples: list[Example]
    counts: Counter


def read_examples(
    rows: Sequence[Mapping[str, Any]], label: str, fields: Mapping[str, str] | None, template: Template
) -> Reading:
    """The examples of the rows of a table.

    Each record is read by itself, since a table may be put together from several: a field is read from the first of
    its usual columns that is filled, and a whole prompt is used where the record has no instruction.

    Args:
        label: name of the table; with a row's index it names the example.
        fields: field -> column, where the column has none of the usual names (`USUAL_COLUMNS`).

    Raises:
        UserError: a column is in no row, or holds something else than text.
    """
    if not rows:
        return Reading([], Counter())
    reading, errors = Reading([], Counter()), []
    columns = _columns(rows, fields or {}, label)
    unread = () if template.names("system") else ("system",)
    for index, row in enumerate(rows):
        entries = {field: _first_filled(row, names) for field, names in columns.items()}
        if not _is_whole(entries, fields or {}):
            entries.pop(WHOLE_PROMPT, None)
        try:
            values = {field: _text(entries[field], f"{label}:{index}") for field in entries if field not in unread}
        except UserError as error:
            errors.append(f"{error}. Write it as text, or name another column: dataset.fields.<field>=<column>")
            continue
        defect = _defect(entries)
        if defect is None:
            reading.examples.append(_example(f"{label}:{index}", values, template))
        reading.counts.update([defect] if defect else _oddities(entries, "system" in unread))
    if errors:
        raise UserError(first_few(errors))
    return reading


def _is_filled(entries: Mapping[str, Entry], field: str) -> bool:
    return field in entries and entries[field].filled


def _is_whole(entries: Mapping[str, Entry], fields: Mapping[str, str]) -> bool:
    """Whether a record has a whole prompt: the user says so, or the record has one and no instruction."""
    return WHOLE_PROMPT in fields or (_is_filled(entries, WHOLE_PROMPT) and not _is_filled(entries, "instruction"))


def _example(name: str, values: Mapping[str, str], template: Template) -> Example:
    if WHOLE_PROMPT in values:
        return Example(name, values[WHOLE_PROMPT], values["response"])
    parts = template.parts(**values)
    return Example(name, "".join(parts), values["response"], parts)


def _defect(entries: Mapping[str, Entry]) -> str | None:
    """The reason for which a record is left out; None for a record that is used."""
    if any(entries[field].speaker not in (None, speaker) for field, speaker in SPEAKERS.items() if field in entries):
        return "strange turn"
    return None if entries["response"].filled else "no response"


def _oddities(entries: Mapping[str, Entry], without_system: bool) -> list[str]:
    """What is unusual about an example. `without_system`: the template does not name the system's text."""
    whole = WHOLE_PROMPT in entries
    turns = {id(entry.turns): len(entry.turns) for entry in entries.values() if entry.turns is not None}
    read = {(id(entry.turns), entry.speaker) for entry in entries.values() if entry.turns is not None}
    oddities = {
        "whole prompts": whole,
        "no instruction": not _is_filled(entries, WHOLE_PROMPT if whole else "instruction"),
        "no input": not whole and not _is_filled(entries, "input"),
        "further turns": sum(turns.values()) > len(read),
        "system text": _is_filled(entries, "system") and (whole or without_system),
    }
    return [oddity for oddity, applies in oddities.items() if applies]


def _columns(rows: Sequence[Mapping[str, Any]], fields: Mapping[str, str], label: str) -> dict[str, list[str]]:
    """Field -> its columns that are in some row, best first: the usual ones, or the one that `fields` names.

    Raises:
        UserError: a field that every table needs has no column.
    """
    whole = {WHOLE_PROMPT: (WHOLE_PROMPT,)}
    candidates = {**whole, "response": USUAL_COLUMNS["response"]} if WHOLE_PROMPT in fields else dict(USUAL_COLUMNS)
    if "instruction" not in fields:
        candidates |= whole
    candidates |= {field: (column,) for field, column in fields.items()}
    available = columns_of(rows)
    columns = {field: _present(rows, available, names) for field, names in candidates.items()}
    optional = {*OPTIONAL, WHOLE_PROMPT, *(["instruction"] if columns.get(WHOLE_PROMPT) else [])} - set(fields)
    missing = [
        f"{label} has no column for the {field} (looked for {', '.join(names)}); it has "
        f"{', '.join(map(str, available))}. Name it: dataset.fields.{field}=<column>"
        for field, names in candidates.items()
        if not columns[field] and field not in optional
    ]
    if missing:
        raise UserError(missing)
    return {field: names for field, names in columns.items() if names}


def _present(rows: Sequence[Mapping[str, Any]], available: Sequence[str], names: Sequence[str]) -> list[str]:
    """The names for which some row has a value."""
    likely = [name for name in names if name in available or name.split(".")[0] in available]
    return [name for name in likely if any(look_up(row, name).value is not ABSENT for row in rows)]


def _first_filled(row: Mapping[str, Any], names: Sequence[str]) -> Entry:
    entries = [look_up(row, name) for name in names]
    return next((entry for entry in entries if entry.filled), entries[0])


def _text(entry: Entry, label: str) -> str:
    return "" if entry.value is ABSENT else as_text(entry.value, entry.column, label)
