"""A model that was made larger, and what of it stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from lightning_modules.length_guard import guard_length
from registries import EXPANSIONS
from registries.settings import ExpansionSettings


@dataclass(frozen=True)
class Expanded:
    """What was done to a model.

    Attributes:
        keeps_function: whether the model is claimed to compute what it computed before.
        frozen: name of every parameter -> which of its numbers stay as they are; empty where all may change.
    """

    keeps_function: bool
    frozen: Mapping[str, Tensor] = field(default_factory=dict)

    def trained(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Full name -> parameter of what is new, in whole or in part."""
        partly = {name for name, mask in self.frozen.items() if not bool(mask.all())}
        return {name: parameter for name, parameter in model.named_parameters() if name in partly}

    def frozen_among(self, names: Iterable[str]) -> int:
        """How many numbers of these parameters stay as they are."""
        return sum(int(self.frozen[name].sum()) for name in names if name in self.frozen)


def expand(model: nn.Module, settings: ExpansionSettings) -> tuple[nn.Module, Expanded]:
    """The larger model of these settings; what is drawn comes from torch's generator.

    Raises:
        UserError: the expansion does not fit this model.
    """
    if settings.mode == "original":
        return model, Expanded(keeps_function=True)
    expansion = EXPANSIONS.build(settings.name, **settings.arguments)
    config = copy.deepcopy(model.config)
    for key, value in expansion.changes(model.config.to_dict()).items():
        setattr(config, key, value)
    larger = type(model)(config).eval()
    old = next(model.parameters())
    for parameter in larger.parameters():  # and not the rotary frequencies, which stay fp32
        parameter.data = parameter.data.to(old.device, old.dtype)
    guard_length(larger).requires_grad_(False)
    if settings.mode == "scratch":
        return larger, Expanded(keeps_function=False)
    kept = expansion.fill(larger, model)
    return larger, Expanded(keeps_function=True, frozen=kept if settings.mode == "freeze" else {})
