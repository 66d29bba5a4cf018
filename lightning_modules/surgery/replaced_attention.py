"""Attention layers of a causal LM get another core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from lightning_modules.surgery.attention_host import host
from registries import ATTENTION, UserError
from registries.architectures import architecture_of
from registries.model_shape import shape_of


@dataclass(frozen=True)
class Surgery:
    """What was done to a model.

    Attributes:
        layers: the replaced layers.
        keeps_function: whether the model is claimed to compute what it computed before.
        notes: what the user should know, one line each.
    """

    layers: list[int]
    keeps_function: bool
    notes: list[str]


def replace_attention(
    model: nn.Module,
    name: str,
    layers: Sequence[int],
    init: Literal["copy", "random"] = "copy",
    options: Mapping[str, Any] | None = None,
) -> Surgery:
    """Give the attention of `layers` the registered core `name`, in place. No parameter changes its value.

    Args:
        model: a transformers causal LM of a known family.
        name: a component of `ATTENTION`.
        layers: indices of the layers, each once.
        init: whether the layer's projections keep their weights or are drawn anew (from torch's generator).
        options: keyword arguments of the core.

    Raises:
        UserError: unknown family or component, or options that the component does not take or this model does not
            allow.
    """
    architecture, shape = architecture_of(model.config.model_type), shape_of(model.config)
    options = dict(options or {})
    errors = [
        message
        for layer in layers
        for message in ATTENTION.check(name, options, {"shape"}, shape=shape.attention(layer))
    ]
    if errors:
        raise UserError(dict.fromkeys(errors))
    attentions, notes = architecture.attention_layers(model), {}  # notes as keys: layers say the same
    keeps_function = init == "copy"
    for layer in layers:
        attention = attentions[layer]
        reference = next(attention.parameters())
        if init == "random":
            _redraw_projections(model, layer)
        core = ATTENTION.build(name, shape=shape.attention(layer), **options)
        host(attention, core.to(device=reference.device, dtype=reference.dtype).train(attention.training))
        attention.requires_grad_(False)
        keeps_function = keeps_function and core.keeps_function
        notes |= dict.fromkeys(f"{shape.family} {note}" for note in getattr(core, "notes", ()))
    return Surgery(list(layers), keeps_function, list(notes))


def _redraw_projections(model: nn.Module, layer: int) -> None:
    """Random projections of one attention layer, as the family initialises them: normal weights, zero biases.

    As new parameters: the untouched model may hold the old ones (see `twin`).
    """
    architecture = architecture_of(model.config.model_type)
    block = model.get_submodule(f"{architecture.blocks}.{layer}")
    for role, path in architecture.roles.items():
        if role.startswith("attention."):
            projection = block.get_submodule(path)
            weight = torch.empty_like(projection.weight).normal_(std=model.config.initializer_range)
            projection.weight = nn.Parameter(weight, requires_grad=False)
            if projection.bias is not None:
                projection.bias = nn.Parameter(torch.zeros_like(projection.bias), requires_grad=False)


def bias_range(model: nn.Module, layers: Sequence[int], length: int) -> float | None:
    """How far apart, in logits, the cores' biases on scores are for positions up to `length` apart.

    What is small beside the spread of the scores themselves changes nothing. None for cores without `score_bias`.
    """
    attentions = architecture_of(model.config.model_type).attention_layers(model)
    cores = [attentions[layer].core for layer in layers]
    biases = [core.score_bias(torch.arange(length)).flatten() for core in cores if hasattr(core, "score_bias")]
    if not biases:
        return None
    values = torch.cat(biases)
    finite = values[values.isfinite()]
    return (finite.max() - finite.min()).item()
