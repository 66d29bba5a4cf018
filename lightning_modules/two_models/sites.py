"""Where the states of two models meet."""

from __future__ import annotations

from typing import NamedTuple

from registries.layers import LayerSpec, resolve_layers
from registries.registry import UserError
from registries.settings import AdapterSettings


class Site(NamedTuple):
    """Where states are read from the source, and where they are put into the target: the blocks that they enter."""

    source: int
    target: int


def resolve_sites(adapter: AdapterSettings, source_layers: int, target_layers: int) -> list[Site]:
    """The sites that the config of an adapter names, in models of so many blocks; one more than these names the end.

    Raises:
        UserError: a layer that a model does not have, or unequal numbers of them.
    """
    try:
        resolve_layers(adapter.layers, target_layers + 1)  # each once
        targets = _in_order(adapter.layers, target_layers + 1)
    except UserError as error:
        raise UserError(f"adapter.{line}, the last of which is the final norm" for line in error.messages) from error
    if adapter.source_layers is None:
        return [Site(round(layer / target_layers * source_layers), layer) for layer in targets]
    try:
        sources = _in_order(adapter.source_layers, source_layers + 1)
    except UserError as error:
        messages = (line.replace("this model's", "the source's") for line in error.messages)
        lines = (line.replace("layers=", "source_layers=", 1) for line in messages)
        raise UserError(f"adapter.{line}, the last of which is the final norm" for line in lines) from error
    if len(sources) != len(targets):
        raise UserError(
            f"adapter.source_layers names {len(sources)} layers and adapter.layers {len(targets)}: as many are needed, "
            "or source_layers=null for the same relative depths"
        )
    return [Site(*pair) for pair in zip(sources, targets, strict=True)]


def _in_order(spec: LayerSpec, num_layers: int) -> list[int]:
    """The layers of a spec, those of a list in its order: they are paired with those of another one."""
    if not isinstance(spec, list):
        return resolve_layers(spec, num_layers)
    resolve_layers(list(dict.fromkeys(spec)), num_layers)  # raises where one is wrong
    return [layer % num_layers for layer in spec]
