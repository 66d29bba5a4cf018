"""The keys that every dataset takes beside its own: how documents become blocks, and blocks batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from data_modules.documents import is_synthetic
from data_modules.encoding import StartToken
from registries.option import Option, shared_keys, split_keys
from registries.registry import Registry, wrong_arguments

SIZES = {"train": "train_size", "validation": "val_size", "test": "test_size"}


@dataclass(frozen=True, kw_only=True)
class DatasetSettings(Option):
    """Settings of the group `dataset`.

    Sizes are in blocks (examples of instruction data); a size of None takes all there is.

    Attributes:
        block_size: tokens per block, with its start token; a block of n tokens has n - 1 targets.
        batch_size: blocks per forward pass.
        num_workers: processes that load batches; the batches are the same for any number of them.
        start_token: whether every block starts with the tokenizer's start token, see `data_modules.encoding`.
        loss_by_position: report the loss of positions 0-255, 256-511, 512-1023, ... apart.
    """

    base: ClassVar = "dataset"

    block_size: Annotated[int, Ge(2)]
    train_size: Annotated[int, Ge(1)] | None
    val_size: Annotated[int, Ge(1)] | None
    test_size: Annotated[int, Ge(1)] | None
    batch_size: Annotated[int, Ge(1)]
    num_workers: Annotated[int, Ge(0)]
    start_token: StartToken
    loss_by_position: bool

    def size(self, split: str) -> int | None:
        """The number of blocks asked for in `train`, `validation` or `test`."""
        return getattr(self, SIZES[split])


def dataset_group_errors(registry: Registry, group: Mapping[str, Any]) -> list[str]:
    """Messages for everything that is wrong with the config group `dataset`."""
    name, label = group.get("name"), f"dataset {group.get('name')!r}"
    shared, own = split_keys(DatasetSettings, group)
    wrong = wrong_arguments(DatasetSettings, shared, label, ("name", "arguments"))
    errors = [message for messages in wrong.values() for message in messages]
    if name not in registry:
        return registry.check(name, {}) + errors
    right = {key: value for key, value in shared.items() if key not in wrong}
    if is_synthetic(registry.get(name)):
        endless = [key for key in SIZES.values() if key in right and right[key] is None]
        errors += [f"{label} makes its blocks without end: set dataset.{key} to a number of blocks" for key in endless]
    return errors + registry.check(name, own, shared=shared_keys(DatasetSettings), **right)
