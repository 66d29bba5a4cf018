"""More transformer blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn

from registries import EXPANSIONS
from registries.architectures import architecture_of
from registries.layers import LayerSpec, resolve_layers
from registries.model_shape import shape_of


@EXPANSIONS.register("blocks")
class MoreBlocks:
    """Copies of blocks behind them, which add nothing at first: what they write to the hidden states is 0.

    As in LLaMA Pro (Wu et al., 2024, arXiv 2401.02415), the output projections of attention and MLP are 0, and all
    else is copied. In families that normalise what a block writes, the scale of that norm is 0 instead.

    Args:
        layers: the blocks that are followed by copies.
        copies: behind each.
    """

    def __init__(self, layers: LayerSpec = "all", copies: Annotated[int, Ge(1)] = 1):
        self.layers, self.copies = layers, copies

    def changes(self, config: Mapping[str, Any]) -> dict[str, Any]:
        shape = shape_of(config)
        copied = self._copied(shape.num_layers)
        architecture = architecture_of(shape.family)
        key = architecture.key_names.get("num_hidden_layers", "num_hidden_layers")
        kinds = config.get("layer_types")
        return {key: len(copied)} | ({"layer_types": [kinds[layer] for layer, _ in copied]} if kinds else {})

    def fill(self, larger: nn.Module, smaller: nn.Module) -> dict[str, Tensor]:
        shape = shape_of(smaller.config)
        architecture = architecture_of(shape.family)
        prefix = f"{architecture.blocks}."
        copied = self._copied(shape.num_layers)
        old, kept = dict(smaller.named_parameters()), {}
        with torch.no_grad():
            for name, parameter in larger.named_parameters():
                is_copy, source, inside = False, name, ""
                if name.startswith(prefix):
                    layer, _, inside = name.removeprefix(prefix).partition(".")
                    of, is_copy = copied[int(layer)]
                    source = f"{prefix}{of}.{inside}"
                parameter.copy_(old[source])
                silent = architecture.silent_value(inside) if is_copy else None
                if silent is not None:
                    parameter.fill_(silent)
                kept[name] = torch.full_like(parameter, not is_copy, dtype=torch.bool)
        return kept

    def _copied(self, num_layers: int) -> list[tuple[int, bool]]:
        """For each block of the larger model: the block that it is made of, and whether it is a copy."""
        chosen = set(resolve_layers(self.layers, num_layers))
        counts = [1 + self.copies * (layer in chosen) for layer in range(num_layers)]
        return [(layer, place > 0) for layer, count in enumerate(counts) for place in range(count)]
