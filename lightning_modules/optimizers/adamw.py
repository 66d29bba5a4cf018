from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from annotated_types import Ge, Gt, Lt

from lightning_modules.optimizers import OPTIMIZERS
from registries.counts import Count, number_of


@OPTIMIZERS.register("adamw")
def adamw(
    parameters: Iterable,
    lr: Annotated[float, Gt(0)] = 1e-3,
    weight_decay: Annotated[float, Ge(0)] = 0.01,
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9,
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.95,
    eps: Annotated[float, Gt(0)] = 1e-8,
    beta2_half_life: Count | None = None,
    tokens_per_step: int = 1,
):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101).

    Args:
        beta2_half_life: tokens after which a gradient counts half in the mean of squares, in the place of `beta2`: at
            a fixed beta2, a larger batch remembers more tokens (arXiv 2507.07101).
        tokens_per_step: tokens of a step.
    """
    from torch.optim import AdamW

    if beta2_half_life is not None:
        beta2 = 0.5 ** (tokens_per_step / number_of(beta2_half_life))
    return AdamW(parameters, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay)
