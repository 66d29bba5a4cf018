"""Which parameters a stage trains, their thawing, and the mode in which they train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import nn

from lightning_modules.surgery.expanded_model import Expanded
from lightning_modules.surgery.lora import Placed, lora_parameters
from lightning_modules.surgery.replaced_attention import Surgery
from registries.architectures import ARCHITECTURES

Trained = Literal["replaced", "model"]


def attention_parameters(model: nn.Module, layers: Sequence[int]) -> dict[str, nn.Parameter]:
    """Full name -> parameter of everything in the attention of these layers, cores included."""
    architecture = ARCHITECTURES.get(model.config.model_type)
    return {
        f"{architecture.attention_path(layer)}.{name}": parameter
        for layer in layers
        for name, parameter in architecture.attention_layers(model)[layer].named_parameters()
    }


def select_parameters(
    model: nn.Module,
    surgery: Surgery | None,
    placement: Placed | None,
    which: Trained,
    expansion: Expanded | None = None,
) -> dict[str, nn.Parameter]:
    """Full name -> parameter of what an end-to-end stage trains.

    That is the attention of the replaced layers, the placed LoRA and what an expansion added; or the model with it all.
    """
    if which == "model":
        return dict(model.named_parameters())
    replaced = attention_parameters(model, surgery.layers) if surgery else {}
    replaced |= expansion.trained(model) if expansion else {}
    return replaced | (lora_parameters(model) if placement else {})


def thaw(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    """Make exactly `parameters` trainable, in fp32; everything else is frozen and keeps its dtype.

    A hosted attention layer bridges the dtypes itself; so a frozen bf16 model is trained with fp32 master weights.
    """
    model.requires_grad_(False)
    for parameter in parameters.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)


def set_modes(module: nn.Module) -> None:
    """Train mode for what trains as a whole, evaluation mode for the rest: no dropout in what is frozen."""
    parameters = list(module.parameters())
    if parameters and all(parameter.requires_grad for parameter in parameters):
        module.train()
        return
    module.training = False
    for child in module.children():
        set_modes(child)
