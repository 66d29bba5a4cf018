"""The interface of model loaders."""

from __future__ import annotations

from typing import Any, Protocol


class ModelLoader(Protocol):
    """What a registered model builds from the keys of its config group option."""

    def config(self) -> dict[str, Any] | None:
        """The content of `config.json`, read without weights and transformers; None if it is not on this machine."""
        ...

    def identity(self) -> str:
        """A text that is equal for equal weights and tokenizers, by their content; nothing is loaded for it."""
        ...

    def tokenizer(self) -> Any:
        """The tokenizer, a `PreTrainedTokenizerBase`."""
        ...

    def model(self, dtype: Any) -> Any:
        """The causal LM with its weights in `dtype` (a torch dtype), in evaluation mode."""
        ...
