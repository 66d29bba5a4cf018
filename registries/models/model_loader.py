"""What a registered model builds."""

from __future__ import annotations

from typing import Any, Protocol


class ModelLoader(Protocol):
    """What a registered model builds. Arguments of a source are the keys of its config group option."""

    def config(self) -> dict[str, Any] | None:
        """The content of its `config.json`, read without weights and without transformers; None if it is not here."""
        ...

    def identity(self) -> str:
        """What tells its weights and its tokenizer from others, by their content; read without loading them."""
        ...

    def tokenizer(self) -> Any:
        """The tokenizer, a `PreTrainedTokenizerBase`."""
        ...

    def model(self, dtype: Any) -> Any:
        """The causal LM with its weights in `dtype` (a torch dtype), in evaluation mode."""
        ...
