"""A wider context of the context-vector model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn

from registries import EXPANSIONS
from registries.registry import UserError

NOISE = 0.02  # deviation of the weights that read copies, where there are several of each number
READERS = ("recurrence.read.weight", "recurrence.reconstruct.weight")  # whose columns are a context's


@EXPANSIONS.register("context")
class WiderContext:
    """Each number of the context is there several times, and what reads the context reads the first ones.

    As Net2Net (Chen et al., 2016, arXiv 1511.05641) widens a layer: what computes a number of the context is copied, so
    that the mean and the deviation by which the context is normalised stay the same, and the weights that read the
    copies add up to 0. They are 0 where there is one copy of each number; of several, they are drawn at random, as all
    of them would be trained alike otherwise.

    Args:
        context_dim: width of the new context, a multiple of the old one.
    """

    def __init__(self, context_dim: Annotated[int, Ge(2)] = 512):
        self.context_dim = context_dim

    def changes(self, config: Mapping[str, Any]) -> dict[str, Any]:
        if config.get("recurrence") != "context_lm":
            kind = config.get("recurrence", config.get("model_type"))
            raise UserError(
                f"expansion=context widens the context of context_lm, and this is a {kind} model; expansion=blocks "
                "makes a transformer larger"
            )
        width = config["arguments"]["context_dim"]
        if self.context_dim <= width or self.context_dim % width:
            raise UserError(
                f"expansion.context_dim={self.context_dim} is no multiple of the {width} that the model has, above it: "
                f"take {2 * width}, {3 * width}, ... (each number is there equally often, so that the norm of the "
                "context stays as it is)"
            )
        return {"arguments": {**config["arguments"], "context_dim": self.context_dim}}

    def fill(self, larger: nn.Module, smaller: nn.Module) -> dict[str, Tensor]:
        arguments = smaller.config.arguments
        times = self.context_dim // arguments["context_dim"]
        wide, old, kept = _wide_axes(arguments), dict(smaller.named_parameters()), {}
        with torch.no_grad():
            for name, parameter in larger.named_parameters():
                key = name.removeprefix("model.")
                weight, is_kept = old[name], torch.ones_like(parameter, dtype=torch.bool)
                for axis, parts in wide.get(key, {}).items():
                    source, copy = _repeated(parts, times, weight.device)
                    weight = weight.index_select(axis, source)
                    is_kept &= (copy == 0).view([-1 if dim == axis else 1 for dim in range(weight.dim())])
                if key in READERS:  # the columns are the last axis
                    noise = NOISE * weight.new_empty(len(weight), times - 1, arguments["context_dim"]).normal_()
                    weight[:, copy > 0] = (noise - noise.mean(1, keepdim=True)).flatten(1)
                parameter.copy_(weight)
                kept[name] = is_kept
        return kept


def _wide_axes(arguments: Mapping[str, Any]) -> dict[str, dict[int, list[tuple[int, bool]]]]:
    """Parameter -> axis -> its parts, in order: how long a part is, and whether it is a context's."""
    context, embedding = (arguments["context_dim"], True), (arguments["embed_dim"], False)
    update = arguments["update"]
    changed = {0: [context] * (3 if update == "gated" else 1)}
    axes = {
        "recurrence.read.weight": {1: [embedding, context]},
        "recurrence.change.weight": changed,
        "recurrence.change.bias": changed,
        "recurrence.context_norm.weight": {0: [context]},
        "recurrence.context_norm.bias": {0: [context]},
        "recurrence.forget": {0: [context]},
        "recurrence.reconstruct.weight": {0: [context, embedding], 1: [context]},
        "recurrence.reconstruct.bias": {0: [context, embedding]},
    }
    return axes | ({"embed_tokens.weight": {1: [embedding, context, context]}} if update == "linear" else {})


def _repeated(parts: list[tuple[int, bool]], times: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each entry of a wide axis: the entry of the old axis that it is made of, and which copy of that it is."""
    source, copy, first = [], [], 0
    for size, is_context in parts:
        for number in range(times if is_context else 1):
            source.append(torch.arange(first, first + size, device=device))
            copy.append(torch.full((size,), number, device=device))
        first += size
    return torch.cat(source), torch.cat(copy)
