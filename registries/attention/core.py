"""The interface of attention replacements."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class AttentionCore(Protocol):
    """A module from queries, keys and values to the attended values.

    A core is built with its own options and `shape`, the `AttentionShape` of its layer.

    A core may offer more; all else that it holds is its own affair:

    - `weights(query, key, mask, scaling, query_start, key_start)`: how much each query position looks at each key
      position, (batch, heads, queries, keys). The transfer of attention weights needs it.
    - `score_bias(offsets)`: what it adds to the scores of query and key positions that lie (n,) positions apart,
      (n, ...) in logits. A run reports its range.
    - `notes`: what a user should know about it in this model, as sentences that follow the name of the model's family.
    - `repeatable = False`, on the class: it does not compute the same when it is called again, which forbids gradient
      checkpointing.

    Attributes:
        own_positions: whether the core brings its own position codes; then queries and keys arrive unrotated.
        keeps_function: whether the core claims to compute the same as the model's own attention; the claim is checked.
    """

    own_positions: bool
    keeps_function: bool

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
        query_start: int,
        key_start: int,
    ) -> Tensor:
        """Attend.

        Args:
            query: (batch, heads, queries, head width).
            key: (batch, key/value heads, keys, head width); grouped heads are not expanded.
            value: (batch, key/value heads, keys, head width).
            mask: None for causal attention; else boolean (batch, 1, queries, keys), True where a query may look.
            scaling: factor on the dot products of queries and keys of a whole head.
            query_start: position of the first query; the next ones follow one by one.
            key_start: position of the first key; not 0 where a cache has dropped old keys.

        Returns:
            Attended values, (batch, heads, queries, head width).
        """
        ...
