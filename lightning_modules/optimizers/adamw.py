from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from annotated_types import Ge, Gt, Lt

from lightning_modules.optimizers import OPTIMIZERS


@OPTIMIZERS.register("adamw")
def adamw(
    parameters: Iterable,
    lr: Annotated[float, Gt(0)] = 1e-3,
    weight_decay: Annotated[float, Ge(0)] = 0.01,
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9,
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.95,
    eps: Annotated[float, Gt(0)] = 1e-8,
):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101)."""
    from torch.optim import AdamW

    return AdamW(parameters, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay)
