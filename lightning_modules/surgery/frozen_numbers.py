"""Parameters that train in part."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class FrozenNumbers:
    """Numbers of trained parameters that training leaves as they are, bit for bit.

    No gradient reaches them (nor counts where gradients are clipped), and what an optimizer does to them all the same,
    such as weight decay, is undone.

    Args:
        masks: parameter -> which of its numbers stay.
    """

    def __init__(self, masks: Mapping[nn.Parameter, Tensor]):
        self._kept = [
            (parameter, mask.to(parameter.device), parameter.detach()[mask.to(parameter.device)].clone())
            for parameter, mask in masks.items()
        ]

    def clear_gradients(self) -> None:
        """After the backward pass."""
        for parameter, mask, _ in self._kept:
            if parameter.grad is not None:  # as that of a loss that a frozen module leaves out
                parameter.grad.masked_fill_(mask, 0)

    @torch.no_grad()
    def put_back(self) -> None:
        """After the optimizer's step."""
        for parameter, mask, values in self._kept:
            parameter.masked_scatter_(mask, values)
