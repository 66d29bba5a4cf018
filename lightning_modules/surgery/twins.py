"""A copy of a model for keeps, which shares its parameters until they change."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import nn


def twin(model: nn.Module) -> nn.Module:
    """A copy of a model for keeps: it holds the same parameters (not copies of them), so that it costs no memory.

    What is done to the model's modules leaves it as it was. Parameters that are to be trained are parted first, by
    `separate`.
    """
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()}).eval()


def separate(original: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Give a twin its own frozen copies of those of its parameters that are about to change."""
    changing = {id(parameter) for parameter in parameters}
    copies: dict[int, nn.Parameter] = {}  # tied weights stay tied
    for module in original.modules():
        for name, parameter in module._parameters.items():
            if id(parameter) in changing:
                if id(parameter) not in copies:
                    copies[id(parameter)] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
                module._parameters[name] = copies[id(parameter)]
