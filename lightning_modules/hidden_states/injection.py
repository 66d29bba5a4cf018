"""Hidden states put in the place of those that a model would compute itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn

from registries.architectures import architecture_of

Side = Literal["input", "output"]


def block_entry(model: nn.Module, layer: int) -> tuple[str, Side]:
    """The module, and the side of it, where the hidden states that enter a block lie.

    The number of blocks itself names what leaves the last one (and enters the final norm).
    """
    blocks = architecture_of(model.config.model_type).blocks
    return (f"{blocks}.{layer - 1}", "output") if layer else (f"{blocks}.0", "input")


@contextmanager
def injected(model: nn.Module, layer: int, states: Tensor) -> Iterator[None]:
    """Within this context, a forward pass of the model starts at a block, with these states as its input.

    The blocks below do not run. Rotary codes, masks and positions are those of the tokens that the model is given,
    whose number must be that of the states.

    Args:
        layer: the block; the number of blocks for what leaves the last one.
        states: (batch, length, hidden).
    """
    blocks = list(model.get_submodule(architecture_of(model.config.model_type).blocks))
    if layer == 0:
        hook = blocks[0].register_forward_pre_hook(
            lambda block, *arguments: _with_states(states, *arguments), with_kwargs=True
        )
        try:
            yield
        finally:
            hook.remove()
        return
    below = blocks[:layer]
    for block in below:
        block.forward = _pass_on
    below[-1].forward = lambda *args, **kwargs: states
    try:
        yield
    finally:
        for block in below:
            del block.forward  # the instance's own, which hides that of its class


def _pass_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


def _with_states(states: Tensor, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The arguments of a block with other hidden states."""
    return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})
