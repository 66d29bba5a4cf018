"""What is wrong with an override of a group or of a key, with the nearest match."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from registries.registry import nearest
from studies.config.groups import GROUPS
from studies.config.overrides import shown

LISTS = ("recovery",)  # groups that take a list of options


def checked_option(item: Override, allowed: Sequence[str]) -> tuple[str | None, list[str]]:
    """The override of a group as it can be composed (with the nearest option for an unknown one), and its errors."""
    group, option = item.key_or_group, item.value()
    if item.is_delete():
        return None, [_deletion_error(item)]
    if (item.is_add() or item.is_force_add()) and not group.startswith("hydra/"):
        return None, [f"{shown(item.input_line)}: the config has all groups already; leave out the +"]
    if isinstance(option, list):
        return _options(item, option, allowed)
    if option in allowed:
        return item.input_line, []
    error = f"{group}={shown(str(option))} is no option{nearest(option, allowed)} Allowed: {', '.join(allowed)}"
    close = difflib.get_close_matches(str(option), allowed, n=1)
    return (f"{item.get_key_element()}={close[0]}" if close else None), [error]


def _options(item: Override, options: list, allowed: Sequence[str]) -> tuple[str | None, list[str]]:
    """As `checked_option`, where a group takes several options in order (the stages of a recovery)."""
    group = item.key_or_group
    if group not in LISTS:
        return None, [f"{item.input_line}: {group} takes one option. Allowed: {', '.join(allowed)}"]
    allowed = [option for option in allowed if option != "none"]  # that stands alone
    twice = {option for option in options if options.count(option) > 1}
    if twice:
        return None, [f"{item.input_line} names {sorted(twice)[0]} twice; name each once"]
    wrong = [option for option in options if option not in allowed]
    errors = [
        f"{group}: {option} is no option{nearest(option, allowed)} Allowed: {', '.join(allowed)}" for option in wrong
    ]
    good = [option for option in options if option not in wrong]
    return f"{item.get_key_element()}=[{','.join(good)}]", errors


def key_errors(item: Override, cfg: DictConfig) -> list[str]:
    """What is wrong with the key of an override."""
    key, line = item.key_or_group, shown(item.input_line)
    root, _, rest = key.partition(".")
    value = item.input_line.partition("=")[2]
    if item.is_delete():
        return [_deletion_error(item)]
    if key == "source":
        return [f"{line}: the second model is chosen by model@source={value}"]
    if rest == "name" and root in (*GROUPS, "experiment", "size"):
        group = "model@source" if root == "source" else root
        return [f"{line}: which {root} it is, is chosen by {group}={value}"]
    if rest and root == "recovery" and "." not in rest and rest not in cfg.recovery:
        return [f"{line}: stages are chosen by a list, recovery=[{rest}]; then their keys can be set"]
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    if isinstance(node, DictConfig) and last in list(node):  # `last in node` is false where a value is still missing
        return _unknown_keys(key, node._get_node(last), item.value())
    if isinstance(node, DictConfig) and parent and (item.is_add() or item.is_force_add()):
        if root in GROUPS and cfg[root].name == "none":
            return [f"{line}: {root} is none, which has no keys; choose one of its options first"]
        return []  # whether that key is taken is told when the config is checked
    siblings = [str(name) for name in node] if isinstance(node, DictConfig) else []
    near = nearest(key, _keys(cfg))
    where = f" Allowed in {parent or 'the config'}: {', '.join(siblings)}" if siblings else ""
    return [f"there is no key {key!r} in this config{near}{where}"]


def _unknown_keys(key: str, node: Any, value: Any) -> list[str]:
    """What is wrong with the keys of a mapping that is given to a node with keys of its own."""
    if not (isinstance(value, dict) and isinstance(node, DictConfig) and not node._is_none() and len(node)):
        return []
    names = [str(name) for name in node]
    return [
        f"there is no key '{key}.{name}' in this config{nearest(name, names)} Allowed in {key}: {', '.join(names)}"
        for name in value
        if name not in names
    ]


def _deletion_error(item: Override) -> str:
    return f"{item.input_line}: nothing can be taken out of the config; give {item.key_or_group} another value"


def _keys(cfg: Any, prefix: str = "") -> list[str]:
    keys = []
    for name in cfg:
        keys.append(f"{prefix}{name}")
        node = cfg._get_node(name)
        if isinstance(node, DictConfig) and not node._is_none():
            keys += _keys(node, f"{prefix}{name}.")
    return keys
