"""A composed config, and the same with other values."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from registries.registry import UserError


class ComposedConfig(NamedTuple):
    """What the options of groups compose.

    Attributes:
        cfg: without Hydra's own part.
        plain: the same as plain dicts, as the last job left it; empty at first.
        linked: key at the top in which something refers to others -> these; "" for what cannot be told.
        undecided: groups of which no option is left to compare the keys with.
        errors: of the options.
    """

    cfg: DictConfig
    plain: dict[str, Any]
    linked: dict[str, set[str]]
    undecided: set[str]
    errors: list[str]


def with_values(base: ComposedConfig, changes: Sequence[Override]) -> tuple[DictConfig, dict[str, Any]]:
    """The config with these values, set as Hydra sets them; and the same as plain dicts.

    Jobs of a sweep set the same keys, so that each may write over what the last one left in `base`, of which only the
    changed parts are worked out anew: a copy takes longer than all checks. It is made where a value adds to what is
    there, or its key lies in another one.
    """
    keys = [item.key_or_group for item in changes]
    nested = any(key.startswith(f"{outer}.") for key in keys for outer in keys)
    only_sets = all(item.type == OverrideType.CHANGE and not isinstance(item.value(), dict) for item in changes)
    in_place = only_sets and not nested
    cfg = base.cfg if in_place else copy.deepcopy(base.cfg)
    for item in changes:
        force = item.type in (OverrideType.ADD, OverrideType.FORCE_ADD)
        OmegaConf.update(cfg, item.key_or_group, item.value(), merge=True, force_add=force)
    if not in_place:
        return cfg, _plain(cfg, cfg)
    base.plain.update(_plain(cfg, _stale(base, keys) if base.plain else cfg))
    return cfg, dict(base.plain)


def _stale(base: ComposedConfig, keys: Sequence[str]) -> set[str]:
    """The keys at the top whose values follow from these keys, directly or through others."""
    stale, before = {"", *(key.split(".")[0] for key in keys)}, None
    while stale != before:
        before = set(stale)
        stale |= {key for key, references in base.linked.items() if references & before}
    return stale - {""}


def _plain(cfg: DictConfig, keys: Iterable[str]) -> dict[str, Any]:
    """What a composed config has at these keys, as plain dicts.

    Raises:
        UserError: values are missing or cannot be worked out.
    """
    try:
        return {key: _resolved(cfg[key]) for key in keys}
    except MissingMandatoryValue as error:
        missing = sorted(OmegaConf.missing_keys(cfg)) or [error.full_key]
        raise UserError(f"{key} needs a value: set {key}=..." for key in missing) from error
    except OmegaConfBaseException as error:
        place = f"{error.full_key}: " if error.full_key else ""
        raise UserError(place + str(error).split("\n")[0]) from error
    except RecursionError as error:
        raise UserError("a value refers to itself: look at what stands in ${...}") from error


def _resolved(node: Any) -> Any:
    is_plain = not OmegaConf.is_config(node)
    return node if is_plain else OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
