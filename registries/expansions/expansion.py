"""The interface of expansions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn


class Expansion(Protocol):
    """Makes a model larger so that it computes at first what it computed before. Built with its keys of the config."""

    def changes(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The keys of `config.json` that are different in the larger model.

        Raises:
            UserError: the model is of another kind, or would not be larger.
        """
        ...

    def fill(self, larger: nn.Module, smaller: nn.Module) -> dict[str, Tensor]:
        """Write weights into the larger model, in place, with which it computes what the smaller one computes.

        Returns:
            Name of every parameter of the larger model -> which of its numbers are the smaller model's, of its shape.
        """
        ...
