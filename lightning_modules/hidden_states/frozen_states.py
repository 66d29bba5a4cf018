"""What frozen parts of a model compute: taken from the activation cache, so that each block of text passes once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from data_modules.batches import ModelInput
from data_modules.caches.activation_cache import ActivationCache, state_key
from data_modules.tensor_files import tensors_sha256
from lightning_modules.hidden_states.injection import Side
from lightning_modules.hidden_states.recorded_calls import record_calls


def model_identity(model: nn.Module) -> dict[str, str]:
    """What a model's activations depend on beside the tokens: its weights (with what else it keeps) and its config."""
    config = {key: value for key, value in model.config.to_dict().items() if not key.startswith("_")}  # not its path
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()
    parameters = dict(model.named_parameters())
    shared = {parameter.data_ptr() for parameter in parameters.values()}
    kept = {name: tensor for name, tensor in model.state_dict().items() if tensor.data_ptr() not in shared}
    return {"weights": tensors_sha256(parameters | kept), "config": digest}


@contextmanager
def in_precision(precision: str | None, device: torch.device) -> Iterator[None]:
    """Within this context, computing is done as `trainer.precision` says, whoever asks for it; None: as it is."""
    if precision is None:
        yield
        return
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
        yield


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
