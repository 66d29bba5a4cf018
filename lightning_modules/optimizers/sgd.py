from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from annotated_types import Ge, Gt, Lt

from lightning_modules.optimizers import OPTIMIZERS


@OPTIMIZERS.register("sgd")
def sgd(
    parameters: Iterable,
    lr: Annotated[float, Gt(0)] = 0.1,
    weight_decay: Annotated[float, Ge(0)] = 0.0,
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9,
):
    """Stochastic gradient descent with momentum."""
    from torch.optim import SGD

    return SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
