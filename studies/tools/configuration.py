"""Write the reference of all config keys, from the registries and the YAML files of `conf/`.

python -m studies.tools.configuration docs/configuration.md
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen

from lightning_modules.config import SECTIONS, EarlyStoppingSettings, RunSettings
from lightning_modules.stages import STAGES
from registries.adapters.adapter import is_trained
from registries.option import CONF, shared_keys
from registries.registry import parameters
from registries.settings import AdapterTrainingSettings
from studies.config.check import ScoreSettings
from studies.config.groups import GROUPS, Group
from studies.run.files import write_text

HEAD = """# Configuration

Every key of the config, with its value where nobody sets it, what it may be, and what it trades. This page is written
by `python -m studies.tools.configuration docs/configuration.md`, from the files that decide it.

A group's option is chosen by `<group>=<option>`, a key set by `<group>.<key>=<value>`. Of an option, its own keys are
listed, and keys of the group that have another value there.
"""
WORDS = {int: "integer", float: "number", str: "text", bool: "true, false", NoneType: "null", dict: "keys and values"}
BOUNDS = {Ge: "≥ {0.ge}", Gt: "> {0.gt}", Le: "≤ {0.le}", Lt: "< {0.lt}"}


class Key(NamedTuple):
    """A key in a YAML file.

    Attributes:
        value: as it is written there.
        comment: what it trades.
    """

    value: str
    comment: str


def reference() -> str:
    """The page, as Markdown."""
    parts = [HEAD, _top()]
    parts += [_group(name, group) for name, group in GROUPS.items() if name != "source"]
    parts += [_stages(), _plain_group("experiment"), _plain_group("size"), _score()]
    return "\n".join(parts)


def file_keys(file: Path) -> dict[str, Key]:
    """The keys of a YAML file that have a comment, by dotted name."""
    keys, path = {}, []
    for line in file.read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"( *)([a-z_0-9]+):(?: (.*?))??(?:  # (.*))?", line)
        if match is None:
            continue
        indent, name, value, comment = match.groups()
        path = [*path[: len(indent) // 2], name]
        if comment and path[0] not in ("defaults", "hydra"):
            keys[".".join(path)] = Key(value or "", comment)
    return keys


def option_keys(file: Path) -> dict[str, Key]:
    """As `file_keys`, with the keys of the files in `conf/base` that it builds on."""
    (line,) = re.findall(r"^defaults: \[(.*)\]", file.read_text(), flags=re.MULTILINE) or [""]
    bases = re.findall(r"(?:^|, )(?:/base/(\w+)@_here_|([a-z]\w+)(?=,|$))", line)
    keys: dict[str, Key] = {}
    for names in bases:
        keys |= option_keys(CONF / "base" / f"{names[0] or names[1]}.yaml")
    return keys | file_keys(file)


def description(file: Path) -> str:
    """The comment at the head of a YAML file."""
    head = re.match(r"(?:# @package .*\n)?((?:# .*\n)+)", file.read_text(encoding="utf-8"))
    return " ".join(line.removeprefix("# ") for line in head[1].splitlines()) if head else ""


def allowed(hint: Any) -> str:
    """What a value may be, in words."""
    kind = get_origin(hint)
    if kind is Annotated:
        base, *limits = get_args(hint)
        words = [BOUNDS[type(limit)].format(limit) for limit in limits if type(limit) in BOUNDS]
        words += [f"at most {limit.max_length} characters" for limit in limits if isinstance(limit, MaxLen)]
        words += ["not empty" for limit in limits if isinstance(limit, MinLen)]
        return " ".join([allowed(base), ", ".join(words)]).strip()
    if kind in (Union, UnionType):
        return " or ".join(map(allowed, get_args(hint)))
    if kind is Literal:
        return ", ".join(map(str, get_args(hint)))
    if kind is list:
        return f"list of {allowed(get_args(hint)[0])}"
    return WORDS.get(kind or hint, getattr(hint, "__name__", str(hint)))


def table(keys: Mapping[str, Key], hints: Mapping[str, Any]) -> str:
    """The rows of these keys."""
    rows = ["| key | value | allowed | meaning |", "| --- | --- | --- | --- |"]
    for name, key in keys.items():
        value = f"`{key.value}`" if key.value else ""
        cells = (f"`{name}`", value, allowed(hints[name]) if name in hints else "", key.comment)
        rows.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join([*rows, ""]) if keys else ""


def type_hints(kind: Any, prefix: str = "") -> dict[str, Any]:
    """Key -> annotation of the parameters of a callable."""
    return {f"{prefix}{name}": item.annotation for name, item in parameters(kind).items()}


def options(group: str) -> Iterable[Path]:
    """The files of a group's options."""
    return sorted((CONF / group).glob("*.yaml"))


def _top() -> str:
    hints = type_hints(RunSettings)
    for name, kind in SECTIONS.items():
        hints |= type_hints(kind, f"{name}.")
    return "\n".join(["## At the top", "", table(file_keys(CONF / "config.yaml"), hints)])


def _group(name: str, group: Group) -> str:
    shared = shared_keys(group.settings)
    base = option_keys(CONF / "base" / f"{group.settings.base}.yaml")
    base = {key: item for key, item in base.items() if key.split(".")[0] in shared}
    hints = type_hints(group.settings) | type_hints(EarlyStoppingSettings, "early_stopping.")
    lines = [f"## `{name}`", "", table(base, hints)]
    for file in options(name):
        keys = {key: item for key, item in option_keys(file).items() if base.get(key) != item}
        own = hints
        if group.registry is not None and file.stem in group.registry:
            own = own | type_hints(group.registry.get(file.stem))
            own |= type_hints(AdapterTrainingSettings) if name == "adapter" and is_trained(file.stem) else {}
        lines += [f"### `{name}={file.stem}`", "", description(file), "", table(keys, own)]
    return "\n".join(lines)


def _stages() -> str:
    lines = ["## `recovery`", "", "Stages of training after a replacement, in order: `recovery=[transfer,lora]`.", ""]
    for file in options("recovery"):
        hints = type_hints(STAGES.get(file.stem)) if file.stem in STAGES else {}
        lines += [f"### `recovery=[{file.stem}]`", "", description(file), "", table(option_keys(file), hints)]
    return "\n".join(lines)


def _plain_group(name: str) -> str:
    lines = [f"## `{name}`", ""]
    for file in options(name):
        lines += [f"### `{name}={file.stem}`", "", description(file), "", table(file_keys(file), {})]
    return "\n".join(lines)


def _score() -> str:
    keys = file_keys(CONF / "score.yaml")
    return "\n".join(["## `score.py`", "", "Beside the keys above.", "", table(keys, type_hints(ScoreSettings))])


def main(file: str) -> None:
    """The command line."""
    write_text(Path(file), reference())


if __name__ == "__main__":
    from studies.tools.command import run_tool

    run_tool(main, __doc__)
