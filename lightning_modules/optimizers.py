"""Optimizers (config group `optimizer`) and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

from registries.option import Option
from registries.registry import Registry

OPTIMIZERS = Registry("optimizer")

Schedule = Literal["cosine", "linear", "constant"]
Scaling = Literal["none", "sqrt", "linear"]


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings(Option):
    """Of the group `optimizer`. The rate (`lr`) is the component's own key."""

    base: ClassVar = "optimizer"

    schedule: Schedule
    warmup_steps: Annotated[int, Ge(0)] | None
    scale_lr: Scaling
    base_batch_size: Annotated[int, Ge(1)]


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


def schedule_factor(step: int, steps: int, schedule: Schedule, warmup_steps: int) -> float:
    """Factor on the learning rate at `step` of `steps`: a linear warm-up, then the schedule, which ends near 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "constant": 1.0,
    }[schedule]


def scaled_lr(lr: float, rule: Scaling, batch_size: int, base_batch_size: int) -> float:
    """Learning rate for batches of `batch_size` blocks, where `lr` was found at `base_batch_size`."""
    ratio = batch_size / base_batch_size
    return lr * {"none": 1.0, "sqrt": math.sqrt(ratio), "linear": ratio}[rule]
