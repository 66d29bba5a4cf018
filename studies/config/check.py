"""Everything that is wrong with a config, found without reading any weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Ge

from lightning_modules.config import (
    SECTIONS,
    TWO_MODEL_MODULES,
    RunSettings,
    exchanged,
    is_chosen,
    with_model_of_run,
)
from registries.option import shared_keys
from registries.registry import UserError, is_there, signature_errors, wrong_arguments
from studies.config.component_checks import not_keys
from studies.config.groups import GROUPS, OTHER_SECTIONS


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """The keys that only score.py has."""

    run: str | None
    split: Literal["validation", "test", "all"]
    prompt: str | None
    tasks: list[str] | None
    task_path: str | None
    limit: Annotated[int, Ge(1)] | None
    num_fewshot: Annotated[int, Ge(0)] | None
    chat: bool
    answer_tokens: Annotated[int, Ge(1)]
    temperature: Annotated[float, Ge(0)]


class Check(NamedTuple):
    """One part of the check of a config.

    Attributes:
        concerns: the key that is wrong if anything is found; checks that read it are then left out.
        reads: the keys at the top of the config that are looked at, all of them right. No others are handed over, so
            that jobs of a sweep which agree in these need one check.
        find: config (these keys alone) -> messages.
    """

    concerns: str
    reads: tuple[str, ...]
    find: Callable[[Mapping[str, Any]], list[str]]


Known = dict[tuple[int, str], list[str]]  # (number of a check, what it reads) -> what it found


def config_errors(cfg: Mapping[str, Any], known: Known | None = None) -> list[str]:
    """Everything that is wrong with a composed config (plain dicts).

    `known` keeps what was found, for other jobs of a sweep.
    """
    known = {} if known is None else known
    if missing := NEEDED - cfg.keys():
        return [f"the config has no key {key!r}: a primary config must build on ours" for key in sorted(missing)]
    sections = {*GROUPS, *OTHER_SECTIONS}
    wrong = {key: [not_keys(key, cfg[key])] for key in sections if key in cfg and not isinstance(cfg[key], Mapping)}
    wrong |= {key: [_unnamed(key)] for key in GROUPS if key in cfg and key not in wrong and not _is_named(cfg[key])}
    if not {"adapter", "model", "source"} & wrong.keys() and cfg["adapter"].get("exchange") is True:
        cfg = exchanged(cfg)
    if not {"model", "expansion"} & wrong.keys():
        try:
            cfg = with_model_of_run(cfg)
        except UserError as error:
            wrong |= {"expansion": error.messages, "model": []}
    wrong |= _root_errors({key: value for key, value in cfg.items() if key not in sections})
    errors = [message for messages in wrong.values() for message in messages]
    for number, check in enumerate(CHECKS):
        if not wrong.keys().isdisjoint(check.reads):
            continue
        part = {key: cfg[key] for key in check.reads if key in cfg}
        key = (number, repr(part))
        if key not in known:
            known[key] = check.find(part)
        if known[key]:
            wrong.setdefault(check.concerns, [])
            errors += known[key]
    return errors


def _is_named(group: Mapping[str, Any]) -> bool:
    return isinstance(group.get("name"), str)


def _unnamed(key: str) -> str:
    return f"{key} has no name: choose one of its options, {key}=<option>"


def _root_errors(root: Mapping[str, Any]) -> dict[str, list[str]]:
    """Key at the top of the config -> what is wrong; sections that a user adds for interpolation are allowed."""
    own, scoring = shared_keys(RunSettings), shared_keys(ScoreSettings)
    score = {key: value for key, value in root.items() if key in scoring}
    top = {
        key: value
        for key, value in root.items()
        if key not in scoring and (key in own or not isinstance(value, Mapping))
    }
    wrong = wrong_arguments(RunSettings, top, "the config")
    wrong |= wrong_arguments(ScoreSettings, score, "score", [key for key in scoring if key not in score])
    for key in ("output_dir", "cache_dir", "run"):
        if key not in wrong and root.get(key) == "":
            wrong[key] = [f"{key} is empty: give it a folder, or leave it out"]
    folder = root.get("task_path")
    if "task_path" not in wrong and folder and not is_there(folder, folder=True):
        wrong["task_path"] = [f"task_path={folder!r} is no folder (looked from {Path.cwd()})"]
    return wrong


def _section(kind: type, key: str) -> Check:
    return Check(key, (key,), lambda cfg: signature_errors(kind, cfg[key], key))


def _imported(module: str, name: str) -> Callable[[Mapping[str, Any]], list[str]]:
    """A check that is imported when it is needed."""
    return lambda cfg: getattr(import_module(module), name)(cfg)


def _question_errors(cfg: Mapping[str, Any]) -> list[str]:
    if cfg["communication"].get("questions") and not is_chosen(cfg["adapter"]):
        return ["communication.questions are for two models: choose an adapter (adapter=ridge)"]
    return []


def _scoring_errors(cfg: Mapping[str, Any]) -> list[str]:
    if "split" not in cfg:
        return []
    errors = []
    if cfg["trainer"]["devices"] > 1:
        errors.append(f"trainer.devices={cfg['trainer']['devices']}: scoring computes on one; leave it out")
    if cfg["chat"] and not sys.stdin.isatty():
        errors.append("chat=true is typed in a terminal, and this is none: ask once, with prompt=...")
    others = [key for key in ("prompt", "tasks") if cfg[key]]
    if cfg["chat"] and others:
        errors.append(f"chat=true and {others[0]}={cfg[others[0]]!r}: leave one of them out")
    return errors


def _control_errors(cfg: Mapping[str, Any]) -> list[str]:
    controls, replaces, expands = cfg["controls"], is_chosen(cfg["replacement"]), is_chosen(cfg["expansion"])
    if controls and not replaces and not expands:
        return [f"controls={controls}: there is nothing to compare, as no layer is replaced and no model expanded"]
    allowed = ("original", "standard") if replaces else ("original", "scratch")
    errors = [
        f"controls={controls}: {control!r} does not go with this study. Allowed: {', '.join(allowed)}"
        for control in controls or []
        if control not in allowed
    ]
    if controls and expands and cfg["expansion"].get("mode") in ("original", "scratch"):
        errors.append(f"expansion.mode={cfg['expansion']['mode']} is a control itself: set controls=[]")
    if "scratch" in (controls or []) and expands and cfg["expansion"].get("run") is None:
        errors.append("controls: 'scratch' is given what the training of expansion.run took: set controls=[original]")
    return errors


SCORING = ("split", "chat", "prompt", "tasks")  # keys that only score.py has
_OPERATED = (
    "model",
    "tokenizer",
    "replacement",
    "placement",
    "expansion",
    "recovery",
    "dataset",
    "optimizer",
    "trainer",
    "cache_dir",
)
_COMPONENTS, _RECOVERY = "studies.config.component_checks", "studies.config.recovery_checks"
CHECKS = (
    *(_section(kind, key) for key, kind in SECTIONS.items()),
    Check("communication", ("communication", "adapter"), _question_errors),
    *(Check(key, (key, *group.reads), _imported(group.checks, f"{key}_errors")) for key, group in GROUPS.items()),
    Check("recovery", _OPERATED, _imported(_RECOVERY, "recovery_errors")),
    Check("devices", (*_OPERATED, "source", *TWO_MODEL_MODULES), _imported(_RECOVERY, "device_errors")),
    Check("trainer", ("trainer", *SCORING), _scoring_errors),
    Check("controls", ("controls", "replacement", "expansion"), _control_errors),
    Check("dataset", ("dataset", "model", "tokenizer", "cache_dir"), _imported(_COMPONENTS, "block_size_errors")),
)
NEEDED = {key for check in CHECKS for key in check.reads} - {*SCORING}
