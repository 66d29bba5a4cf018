"""How the keys of the config are read into settings: dataclasses that say type and range of every key.

The value of a key that nobody sets stands once, with what it trades, in `conf/`: the keys that all options of a group
share stand in `conf/base/<group>.yaml`, all others in `conf/config.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from registries.registry import signature_errors

CONF = Path(__file__).resolve().parent.parent / "conf"

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class Option:
    """The option that was chosen in a config group. Subclasses add the keys that all options of the group share.

    Attributes:
        name: of the component.
        arguments: the component's own keys.
    """

    base: ClassVar[str]  # the file in conf/base that holds the values of the shared keys

    name: str
    arguments: dict = field(default_factory=dict)

    @classmethod
    def read(cls, group: Mapping[str, Any]) -> Self:
        """The settings that a valid config group holds."""
        shared, own = split_keys(cls, group)
        return cls(name=group["name"], arguments=own, **shared)


def shared_keys(kind: type) -> list[str]:
    """The keys of the config that a dataclass of settings declares: its fields without a default, but not `name`."""
    defaults = [
        item.name for item in fields(kind) if item.default is not MISSING or item.default_factory is not MISSING
    ]
    return [item.name for item in fields(kind) if item.name not in ("name", *defaults)]


def split_keys(kind: type, group: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys of a group that all its options share, and the component's own.

    A shared key that is left out, as in the config of an earlier version, has its value of `conf/base`.
    """
    names = shared_keys(kind)
    values = {key: base_values(kind.base)[key] for key in names}
    shared = values | {key: value for key, value in group.items() if key in names}
    return shared, {key: value for key, value in group.items() if key not in (*names, "name")}


def shared_key_errors(kind: type, group: Mapping[str, Any], label: str) -> list[str]:
    """What is wrong with the shared keys of a group."""
    names = shared_keys(kind)
    given = [item.name for item in fields(kind) if item.name not in names]
    return signature_errors(kind, split_keys(kind, group)[0], label, given)


def read_section(kind: type[S], section: Mapping[str, Any], key: str = "") -> S:
    """The settings that a valid section of the config (`key`), or its top, holds."""
    values = root_values()[key] if key else root_values()
    return kind(**{name: section.get(name, values.get(name)) for name in shared_keys(kind)})


@cache
def base_values(name: str) -> Mapping[str, Any]:
    """The values of a file in `conf/base`, with those of the files there that it builds on."""
    values = _load(CONF / "base" / f"{name}.yaml")
    others = [item for item in values.pop("defaults", []) if isinstance(item, str) and item[0] not in "/_"]
    inherited = {key: value for other in others for key, value in base_values(other).items()}
    return {**inherited, **values}


@cache
def root_values() -> Mapping[str, Any]:
    """The values of `conf/config.yaml`."""
    return _load(CONF / "config.yaml")


def _load(file: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf  # which reads 1e-3 as a number, as Hydra does

    return OmegaConf.to_container(OmegaConf.load(file))
