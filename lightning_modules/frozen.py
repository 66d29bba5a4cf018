"""What frozen parts of a model compute: taken from the activation cache, so that each block of text passes once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data_modules.activations import ActivationCache, place
from data_modules.token_cache import tensors_sha256
from lightning_modules.injection import Side, injected, site
from lightning_modules.inputs import model_inputs
from lightning_modules.stages import Workspace
from registries.architectures import architecture_of


@dataclass(frozen=True)
class Call:
    """What a module is called with beside hidden states: rotary codes, masks, positions."""

    args: tuple
    kwargs: dict[str, Any]

    def __call__(self, module: nn.Module, states: Tensor) -> Tensor:
        """What a module makes of hidden states (batch, length, hidden) when it is called so."""
        return _states_of(module(states, *self.args, **self.kwargs))


class Record(NamedTuple):
    """One call of a module with the hidden states that went in and came out, (batch, length, hidden) each."""

    call: Call
    input: Tensor
    output: Tensor


@torch.no_grad()
def record_calls(model: nn.Module, paths: Sequence[str], rows: Tensor, **inputs: Any) -> dict[str, Record]:
    """Module name -> its call in a forward pass of the model's body; nothing runs after the last of them.

    Args:
        inputs: of the model beside the tokens.

    Raises:
        RuntimeError: one of the modules was not called.
    """
    calls: dict[str, Record] = {}

    def record(path: str, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        kwargs = dict(kwargs)
        states, args = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), args)
        calls[path] = Record(Call(args, kwargs), states, _states_of(output))
        if len(calls) == len(paths):
            raise _AllRecorded

    hooks = [
        model.get_submodule(path).register_forward_hook(
            lambda module, args, kwargs, output, path=path: record(path, args, kwargs, output), with_kwargs=True
        )
        for path in paths
    ]
    try:
        model.base_model(**model_inputs(rows), **{"use_cache": False, **inputs})
    except _AllRecorded:
        return calls
    finally:
        for hook in hooks:
            hook.remove()
    raise RuntimeError(f"of {list(paths)}, only {list(calls)} were called")


class _AllRecorded(Exception):
    """Ends a forward pass of which the rest is not needed."""


def _states_of(output: Any) -> Tensor:
    """Attention layers of transformers return (hidden states, weights), blocks hidden states alone."""
    return output[0] if isinstance(output, tuple) else output


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


class Calls:
    """How a model calls some of its modules, as far as that does not depend on the tokens.

    For texts that are read through, one forward pass per shape tells it; where examples are kept apart, each batch has
    masks and rotary codes of its own.
    """

    def __init__(self, model: nn.Module, paths: Sequence[str]):
        self.model, self.paths = model, list(paths)
        self._known: dict[tuple[int, ...], dict[str, Call]] = {}

    def __call__(self, rows: Tensor) -> dict[str, Call]:
        """Module name -> its call, for these rows."""
        if rows.dim() == 3:
            return self._recorded(rows)
        if rows.shape not in self._known:
            self._known[rows.shape] = self._recorded(rows)
        return self._known[rows.shape]

    def _recorded(self, rows: Tensor) -> dict[str, Call]:
        return {path: record.call for path, record in record_calls(self.model, self.paths, rows).items()}


class FrozenStates:
    """Hidden states that go in and out of modules of a frozen model, by block of text.

    Args:
        model: a causal LM in evaluation mode, of which nothing that these states depend on changes.
        wanted: name -> (module name, which side of it).
        cache: where they are kept.
        identity: what the states depend on beside the module and the tokens: weights, dtype, code, and `precision`, in
            which they are then computed, within a trainer or not.
        within: the context for a row in which the model runs on it, if states that it starts from are known.
    """

    def __init__(
        self,
        model: nn.Module,
        wanted: Mapping[str, tuple[str, Side]],
        cache: ActivationCache,
        identity: Mapping[str, Any],
        within: Callable[[Tensor], AbstractContextManager] = nullcontext,
    ):
        self.model, self.wanted, self.cache, self.within = model, dict(wanted), cache, within
        self.precision = identity.get("precision")
        self.places = {name: place(**identity, module=path, side=side) for name, (path, side) in wanted.items()}

    def reserve(self, rows: Sequence[Tensor] | Tensor, visits: int) -> bool:
        """Make room in the cache for that many visits of rows, the longest ones. Returns whether they will be kept."""
        longest = max(map(len, rows), default=0)
        entry_bytes = longest * self.model.config.get_text_config().hidden_size * self.model.dtype.itemsize
        return self.cache.reserve(list(self.places.values()), rows, min(len(rows), visits), entry_bytes)

    def __call__(self, rows: Tensor) -> dict[str, Tensor]:
        """Name -> (batch, length, hidden) for rows of blocks."""
        found = self.cache.fetch(list(self.places.values()), rows, self._compute)
        return {name: found[where] for name, where in self.places.items()}

    def _compute(self, row: Tensor) -> dict[str, Tensor]:
        with self.within(row), in_precision(self.precision, row.device):
            calls = record_calls(self.model, list(dict.fromkeys(path for path, _ in self.wanted.values())), row)
        return {self.places[name]: getattr(calls[path], side) for name, (path, side) in self.wanted.items()}


class FrozenPrefix:
    """The layers below the lowest one that trains: they run once per block of text, then their output is read back.

    Args:
        model: of which exactly what trains requires gradients.
        workspace: of the run.
    """

    def __init__(self, model: nn.Module, workspace: Workspace):
        self.model, self.blocks = model, architecture_of(model.config.model_type).blocks
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.layers = lowest_layer(trained, self.blocks)
        self.states: FrozenStates | None = None
        if self.layers:
            identity = dict(workspace.identity)
            if self._changed(workspace):
                weights = tensors_sha256(self._parameters(model))
                identity |= {"changes": workspace.changes, "weights below": weights}
            self.states = FrozenStates(model, {"states": site(model, self.layers)}, workspace.activations, identity)

    def reserve(self, rows: Tensor, visits: int) -> None:
        """Make room in the cache for that many visits of rows."""
        if self.states is not None:
            self.states.reserve(rows, visits)

    def _changed(self, workspace: Workspace) -> bool:
        """Whether surgery or an earlier stage has changed anything below."""
        if workspace.surgery and workspace.surgery.layers[0] < self.layers:
            return True
        ours, theirs = self._parameters(self.model), self._parameters(workspace.original)
        return ours.keys() != theirs.keys() or any(ours[name] is not theirs[name] for name in ours)

    def _parameters(self, model: nn.Module) -> dict[str, Tensor]:
        """All parameters but those of the layers above (norm and head do no harm)."""
        above = tuple(f"{self.blocks}.{layer}." for layer in range(self.layers, model.config.num_hidden_layers))
        return {name: tensor for name, tensor in model.named_parameters() if not name.startswith(above)}

    @contextmanager
    def read_back(self, rows: Tensor) -> Iterator[None]:
        """Within this context, a forward pass of the model on `rows` starts at the lowest layer that trains."""
        if self.states is None:
            yield
            return
        with injected(self.model, self.layers, self.states(rows)["states"]):
            yield


def lowest_layer(trained: Sequence[str], blocks: str) -> int:
    """The lowest layer in which one of these parameters lies; 0 where one lies outside of all layers."""
    layers = [name.removeprefix(f"{blocks}.").partition(".")[0] for name in trained]
    return min((int(layer) if layer.isdigit() else 0 for layer in layers), default=0)
