"""How long steps take and how many tokens they see, without validation, checkpoints and warm-up."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning import Callback

from data_modules.batches import is_real
from lightning_modules.stopping import stop_if_requested

WARM_UP_BATCHES = 2
_STATE = ("seconds", "batches", "tokens", "counted_seconds", "counted_tokens")


class Throughput(Callback):
    """Times training steps or, in `trainer.validate`, scored batches, before each of which the process may stop.

    Attributes:
        seconds: time in batches, warm-up included; carried over a resume.
        tokens_per_s: tokens of the batches after the warm-up per second (all of them where there are no others).
    """

    def __init__(self) -> None:
        self.seconds, self.batches, self.tokens = 0.0, 0, 0
        self.counted_seconds, self.counted_tokens = 0.0, 0
        self._started = 0.0

    @property
    def tokens_per_s(self) -> float:
        if self.counted_seconds:
            return self.counted_tokens / self.counted_seconds
        return self.tokens / self.seconds if self.seconds else 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        self._start()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._stop(batch)

    def on_validation_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.state.fn != "fit":
            self._start()

    def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        if trainer.state.fn != "fit":
            self._stop(batch)

    def _start(self) -> None:
        stop_if_requested()
        _synchronize()
        self._started = time.perf_counter()

    def _stop(self, batch: Any) -> None:
        _synchronize()
        spent = time.perf_counter() - self._started
        tokens = int(is_real(batch).sum())
        self.seconds, self.tokens, self.batches = self.seconds + spent, self.tokens + tokens, self.batches + 1
        if self.batches > WARM_UP_BATCHES:
            self.counted_seconds, self.counted_tokens = self.counted_seconds + spent, self.counted_tokens + tokens

    def state_dict(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, float]) -> None:
        vars(self).update(state)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
