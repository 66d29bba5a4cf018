"""Next-token training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_modules.metrics.token_nll import token_nll
from lightning_modules.stages import STAGES


@STAGES.register("next_token")
@dataclass
class NextToken:
    """Trains `select(model)` on the negative log-likelihood of the text."""

    select: Callable[[nn.Module], dict[str, nn.Parameter]]
    steps: int
    blocks_per_step: int
    blocks_per_pass: int
    lr: float

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return self.select(model)

    def loss(self, model: nn.Module, input_ids: Tensor) -> tuple[Tensor, int]:
        nll = token_nll(model(input_ids=input_ids, use_cache=False).logits, input_ids)
        return nll.sum(), nll.numel()
