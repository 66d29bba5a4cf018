"""Mixing of the depth slices of an attention output."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

FusionMode = Literal["low_rank", "attention", "mean", "identity"]


class DepthFusion(nn.Module):
    """Replaces slice j of a head's output by sum_k mixing[k, j] * slice k.

    The mixing matrix (depth, depth) is the same for all heads and positions:
        low_rank: I + U V^T / sqrt(rank), with V = 0 at the start so that it starts as the identity; without the
            residual it is U V^T / sqrt(rank) with orthonormal U and V, of rank `rank` only.
        attention: softmax(Q K^T / sqrt(depth)) with learned Q and K, normalised over the k that is summed.
        mean: every slice becomes the average of all.
        identity: nothing is mixed.
    """

    def __init__(self, depth: int, head_width: int, mode: FusionMode, rank: int | None = None, residual: bool = True):
        super().__init__()
        self.mode, self.depth, self.residual = mode, depth, residual
        self.slice_width = head_width // depth
        self.rank = max(1, depth // 4) if rank is None else rank
        if mode == "low_rank":
            left = torch.linalg.qr(torch.randn(depth, self.rank))[0]
            right = torch.zeros(depth, self.rank) if residual else torch.linalg.qr(torch.randn(depth, self.rank))[0]
            self.left, self.right = nn.Parameter(left), nn.Parameter(right)
        elif mode == "attention":
            self.query = nn.Parameter(torch.randn(depth, depth) / math.sqrt(depth))
            self.key = nn.Parameter(torch.randn(depth, depth) / math.sqrt(depth))

    def mixing(self) -> Tensor:
        """(depth, depth); column j holds the weights of output slice j."""
        if self.mode == "low_rank":
            product = self.left @ self.right.T / math.sqrt(self.rank)
            return product + torch.eye(self.depth).to(product) if self.residual else product
        if self.mode == "attention":
            return (self.query @ self.key.T / math.sqrt(self.depth)).softmax(dim=0)
        if self.mode == "mean":
            return torch.full((self.depth, self.depth), 1 / self.depth)
        return torch.eye(self.depth)

    def forward(self, output: Tensor) -> Tensor:
        """(..., head width), slices one after the other -> the same shape."""
        if self.mode == "identity":
            return output
        # One matrix product of the head's width: mixing tiny (depth, depth) matrices position by position is slower.
        mixing = torch.kron(self.mixing().to(output), torch.eye(self.slice_width).to(output))
        return output @ mixing
