"""Products of one matrix with few rows at a time, many times: oneDNN lays the matrix out for them once."""

from __future__ import annotations

import torch
from torch import Tensor

_ONEDNN = torch.ops.mkldnn if torch.backends.mkldnn.is_available() else None


class PackedLinear:
    """x -> x w' + b, without gradients. Where torch has no oneDNN, or for other numbers than fp32, a plain product.

    torch's own product of 32 rows takes a tenth longer (two cores of an AMD EPYC, 512 x 512).

    Args:
        weight: (outputs, inputs).
        rows: how many there are at a time.
        bias: (outputs,).
    """

    def __init__(self, weight: Tensor, rows: int, bias: Tensor | None = None):
        self.weight, self.bias = weight.t(), bias
        packs = hasattr(_ONEDNN, "_linear_pointwise") and weight.is_cpu and weight.dtype == torch.float32
        self.packed = _ONEDNN._reorder_linear_weight(weight.contiguous(), rows) if packs else None

    def __call__(self, inputs: Tensor, relu: bool = False) -> Tensor:
        """(rows, inputs) -> (rows, outputs), through a ReLU if asked for."""
        if self.packed is not None:
            return _ONEDNN._linear_pointwise(inputs, self.packed, self.bias, "relu" if relu else "none", [], "")
        outputs = inputs @ self.weight if self.bias is None else torch.addmm(self.bias, inputs, self.weight)
        return outputs.relu_() if relu else outputs

    def plus(self, inputs: Tensor, others: Tensor) -> Tensor:
        """The product of (rows, inputs) plus others, (rows, outputs); without the bias."""
        if self.packed is not None:
            return _ONEDNN._linear_pointwise.binary(inputs, others, self.packed, None, "add")
        return torch.addmm(others, inputs, self.weight)
