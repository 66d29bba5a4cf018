"""What frozen parts of a model compute: taken from the activation cache, so that each block of text passes once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from data_modules.batches import ModelInput
from data_modules.caches.activation_cache import ActivationCache, state_key
from lightning_modules.dtypes import in_precision
from lightning_modules.hidden_states.injection import Side
from lightning_modules.hidden_states.recorded_calls import record_calls


class FrozenStates:
    """Hidden states that go in and out of modules of a frozen model, by block of text.

    Args:
        model: a causal LM in evaluation mode, of which nothing that these states depend on changes.
        sides: name -> (module name, which side of it).
        cache: where they are kept.
        identity: what the states depend on beside the module and the tokens: weights, dtype, code, and `precision`, in
            which they are then computed, within a trainer or not.
        within: the context for a row in which the model runs on it, if states that it starts from are known.
    """

    def __init__(
        self,
        model: nn.Module,
        sides: Mapping[str, tuple[str, Side]],
        cache: ActivationCache,
        identity: Mapping[str, Any],
        within: Callable[[ModelInput], AbstractContextManager] = nullcontext,
    ):
        self.model, self.sides, self.cache, self.within = model, dict(sides), cache, within
        self.precision = identity.get("precision")
        self.keys = {name: state_key(**identity, module=path, side=side) for name, (path, side) in sides.items()}

    def reserve(self, rows: Sequence[ModelInput], visits: int) -> bool:
        """Make room in the cache for that many visits of rows, the longest ones. Returns whether they will be kept."""
        longest = max((row.tokens.shape[1] for row in rows), default=0)
        entry_bytes = longest * self.model.config.get_text_config().hidden_size * self.model.dtype.itemsize
        return self.cache.reserve(list(self.keys.values()), rows, min(len(rows), visits), entry_bytes)

    def __call__(self, inputs: ModelInput) -> dict[str, Tensor]:
        """Name -> (batch, length, hidden) for a batch."""
        states = self.cache.fetch(list(self.keys.values()), inputs, self._compute)
        return {name: states[key] for name, key in self.keys.items()}

    def _compute(self, row: ModelInput) -> dict[str, Tensor]:
        with self.within(row), in_precision(self.precision, row.tokens.device):
            calls = record_calls(self.model, list(dict.fromkeys(path for path, _ in self.sides.values())), row)
        return {self.keys[name]: getattr(calls[path], side) for name, (path, side) in self.sides.items()}
