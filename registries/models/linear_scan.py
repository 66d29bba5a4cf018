"""Linear recurrences whose steps are element by element."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_scan(keep: Tensor, add: Tensor, first: Tensor) -> Tensor:
    """(batch, length, width): c_t = keep_t * c_(t-1) + add_t, where c before the first token is `first`."""
    return LinearScan.apply(keep, add, first)


class LinearScan(torch.autograd.Function):
    """A loop over the length of element-wise steps; going back, the same loop from the end."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx, keep: Tensor, add: Tensor, first: Tensor) -> Tensor:
        keep, states = keep.transpose(0, 1).contiguous(), _copied(add.transpose(0, 1))
        before = first
        for factor, state in zip(keep, states, strict=True):
            state.addcmul_(factor, before)
            before = state
        ctx.save_for_backward(keep, states, first)
        return states.transpose(0, 1)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keep, states, first = ctx.saved_tensors
        gradients = _copied(gradient.transpose(0, 1))
        for step in range(len(gradients) - 1, 0, -1):
            gradients[step - 1].addcmul_(keep[step], gradients[step])
        before = torch.cat([first[None], states[:-1]])
        return (gradients * before).transpose(0, 1), gradients.transpose(0, 1), gradients[0] * keep[0]


def _copied(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)
