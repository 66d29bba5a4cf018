"""Override lines as a user types them: how they are read, what they sweep over, and how they should be typed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from registries.registry import UserError

MAX_JOBS = 10_000  # of a sweep; each is checked before the first one starts
UNREADABLE = (HydraException, ValueError, RecursionError)  # of a parser that meets too long a number, or deep brackets


def read_line(line: str) -> Override:
    """An override line, parsed. Raises UserError that shows the line as it must be typed."""
    try:
        return OverridesParser.create().parse_override(line)
    except UNREADABLE as error:
        key, equals, text = line.partition("=")
        if not equals and _is_key(key):
            raise UserError(f"cannot read {shown(line)!r}: it has no value; type {key}=<value>") from error
        if not _is_key(key):
            raise UserError(f"cannot read {shown(line)!r}: {shown(key)!r} is no key; type <key>=<value>") from error
        reason = shown(str(error).splitlines()[0] if str(error) else type(error).__name__)
        forms = " or ".join(as_typed(key, text)) if len(line) <= 200 else ""
        raise UserError(f"cannot read {shown(line)!r}: {reason}" + (f"; type {forms}" if forms else "")) from error


def shown(line: str) -> str:
    """A line as a message shows it: very long ones lose their middle."""
    return line if len(line) <= 200 else f"{line[:100]} ... {line[-50:]}"


def read_lines(lines: Sequence[str], errors: list[str]) -> list[Override]:
    """Those lines that can be read; what is wrong with the others is told in `errors`."""
    parsed = []
    for line in lines:
        try:
            parsed.append(read_line(line))
        except UserError as error:
            errors += error.messages
    return parsed


def as_typed(key: str, text: str) -> list[str]:
    """How `key` is given `text` in a shell: as a list where that is in brackets, else as one text, and as several.

    Hydra takes much of `=`, `#`, braces, quotes and letters beyond ASCII for its own grammar, unless they are in quotes
    of their own inside of the shell's. Forms that would give another value are left out.
    """
    lines = []
    if text.startswith("[") and text.endswith("]"):
        items = [item.strip() for item in text[1:-1].split(",")]
        lines.append(_checked(f"{key}=[{','.join(map(_quoted, items))}]", items))
    if not any(lines):
        lines.append(_checked(f"{key}={_quoted(text)}", text))
    if "," in text and text[:1] not in "[{\"'":
        lines.append(f"{key}={','.join(_quoted(item.strip()) for item in text.split(','))}")
    return [shlex.quote(line) for line in lines if line and line.isprintable() and _is_readable(line)]


def _checked(line: str, value: Any) -> str | None:
    """The line, if it gives this value."""
    try:
        parsed = OverridesParser.create().parse_override(line).value()
        keeps_value = OmegaConf.to_container(OmegaConf.create({"value": parsed}), resolve=True) == {"value": value}
    except (*UNREADABLE, OmegaConfBaseException):
        return None
    return line if keeps_value else None


def _quoted(text: str) -> str:
    """A text in double quotes, in which Hydra's grammar escapes quotes, the backslashes before them, and `${`."""
    text = re.sub(r'(\\*)("|$)', lambda match: match[1] * 2 + ('\\"' if match[2] else ""), text)
    return '"' + re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", text) + '"'


def _is_key(key: str) -> bool:
    return bool(key) and _is_readable(f"{key}=0")


def _is_readable(line: str) -> bool:
    try:
        OverridesParser.create().parse_override(line)
    except UNREADABLE:
        return False
    return True


def swept_lines(item: Override, options: Callable[[str], Sequence[str]]) -> list[str]:
    """A line for each value that an override sweeps over, in order; of an interval, its ends.

    Args:
        options: the options of a config group, for `glob(...)`; none for what is no group.

    Raises:
        UserError: no value at all, or too many.
    """
    values = item.value()
    if item.is_interval_sweep():
        return [f"{item.get_key_element()}={value}" for value in (values.start, values.end)]
    if isinstance(values, Glob):
        names = values.filter(list(options(item.key_or_group)))
    else:
        try:
            names = list(islice(item.sweep_string_iterator(), MAX_JOBS + 1))
        except UNREADABLE as error:
            raise UserError(f"{shown(item.input_line)}: {str(error).splitlines()[0]}") from error
    if not names:
        kind = "no option of a config group" if isinstance(values, Glob) else "no value"
        raise UserError(f"{shown(item.input_line)} names {kind}: there is nothing to sweep over")
    if len(names) > MAX_JOBS:
        raise UserError(
            f"{shown(item.input_line)} names more than {MAX_JOBS:,} values: a sweep has at most so many jobs"
        )
    return [f"{item.get_key_element()}={name}" for name in names]
