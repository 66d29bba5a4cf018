"""The learning rate from step to step: what all optimizers share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from registries.option import Option

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
