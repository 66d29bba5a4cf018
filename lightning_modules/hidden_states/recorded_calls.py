"""How a model calls its modules: hidden states that go in and come out, and what else they are called with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data_modules.batches import ModelInput


@dataclass(frozen=True)
class Call:
    """What a module is called with beside hidden states: rotary codes, masks, positions."""

    args: tuple
    kwargs: dict[str, Any]

    def __call__(self, module: nn.Module, states: Tensor) -> Tensor:
        """What a module makes of hidden states (batch, length, hidden) when it is called so."""
        return _states_of(module(states, *self.args, **self.kwargs))


class RecordedCall(NamedTuple):
    """One call of a module with the hidden states that went in and came out, (batch, length, hidden) each."""

    call: Call
    input: Tensor
    output: Tensor


@torch.no_grad()
def record_calls(model: nn.Module, paths: Sequence[str], inputs: ModelInput, **options: Any) -> dict[str, RecordedCall]:
    """Module name -> its call in a forward pass of the model's body; nothing runs after the last of them.

    Args:
        options: of the model beside what it reads.

    Raises:
        RuntimeError: one of the modules was not called.
    """
    calls: dict[str, RecordedCall] = {}

    def record(path: str, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        kwargs = dict(kwargs)
        states, args = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), args)
        calls[path] = RecordedCall(Call(args, kwargs), states, _states_of(output))
        if len(calls) == len(paths):
            raise _AllRecorded

    hooks = [
        model.get_submodule(path).register_forward_hook(
            lambda module, args, kwargs, output, path=path: record(path, args, kwargs, output), with_kwargs=True
        )
        for path in paths
    ]
    try:
        model.base_model(**inputs.arguments, **{"use_cache": False, **options})
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


class Calls:
    """How a model calls some of its modules, as far as that does not depend on the tokens.

    For texts that are read through, one forward pass per shape tells it; where examples are kept apart, each batch has
    masks and rotary codes of its own.
    """

    def __init__(self, model: nn.Module, paths: Sequence[str]):
        self.model, self.paths = model, list(paths)
        self._known: dict[tuple[int, ...], dict[str, Call]] = {}

    def __call__(self, inputs: ModelInput) -> dict[str, Call]:
        """Module name -> its call, for a batch."""
        if inputs.positions is not None:
            return self._recorded(inputs)
        shape = inputs.tokens.shape
        if shape not in self._known:
            self._known[shape] = self._recorded(inputs)
        return self._known[shape]

    def _recorded(self, inputs: ModelInput) -> dict[str, Call]:
        return {path: record.call for path, record in record_calls(self.model, self.paths, inputs).items()}
