"""The keys that every dataset takes beside its own: how documents become blocks, and blocks batches."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from annotated_types import Ge

from data_modules.encoding import StartToken
from registries.registry import Registry, nearest, parameters, wrong_arguments


@dataclasses.dataclass(frozen=True)
class BlockSettings:
    """Sizes are in blocks; a size of None takes all there is.

    Args:
        block_size: tokens per block, with its start token; a block of n tokens has n - 1 targets.
        batch_size: blocks per forward pass.
        num_workers: processes that load batches; the batches are the same for any number of them.
        start_token: whether every block starts with the tokenizer's start token, see `data_modules.encoding`.
        loss_by_position: report the loss of positions 0-255, 256-511, 512-1023, ... apart.
    """

    block_size: Annotated[int, Ge(2)] = 512
    train_size: Annotated[int, Ge(1)] | None = None
    val_size: Annotated[int, Ge(1)] | None = None
    test_size: Annotated[int, Ge(1)] | None = None
    batch_size: Annotated[int, Ge(1)] = 1
    num_workers: Annotated[int, Ge(0)] = 0
    start_token: StartToken = "auto"
    loss_by_position: bool = False

    def size(self, split: str) -> int | None:
        """The number of blocks asked for in `train`, `validation` or `test`."""
        return {"train": self.train_size, "validation": self.val_size, "test": self.test_size}[split]


SHARED_KEYS = tuple(field.name for field in dataclasses.fields(BlockSettings))


def dataset_settings(dataset: Any) -> tuple[str, BlockSettings, dict[str, Any]]:
    """Name, shared settings, and the component's own arguments of a valid config group `dataset`."""
    name, shared, own = _parts(dataset)
    return name, BlockSettings(**shared), own


def check_dataset(registry: Registry, dataset: Any) -> list[str]:
    """Messages for everything that is wrong with the config group `dataset`."""
    name, shared, own = _parts(dataset)
    label = f"dataset {name!r}"
    wrong = wrong_arguments(BlockSettings, shared, label)
    errors = [message for messages in wrong.values() for message in messages]
    if name not in registry:
        return registry.check(name, {}) + errors
    # Unknown keys are told here, since the registry knows the component's keys only.
    known = parameters(registry.get(name))
    allowed = [*SHARED_KEYS, *known]
    for key in [key for key in own if key not in known]:
        errors.append(f"{label} has no key {key!r}{nearest(key, allowed)} Allowed: {', '.join(allowed)}")
        del own[key]
    settings = {**dataclasses.asdict(BlockSettings()), **shared}
    settings = {key: value for key, value in settings.items() if key not in wrong}
    if hasattr(registry.get(name), "position_groups"):  # a SyntheticDataset
        endless = [key for key in ("train_size", "val_size", "test_size") if settings.get(key, 0) is None]
        errors += [f"{label} makes its blocks without end: set dataset.{key} to a number of blocks" for key in endless]
    return errors + registry.check(name, own, **settings)


def _parts(dataset: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    items = dict(dataset)
    name = items.pop("name", None)
    shared = {key: items.pop(key) for key in SHARED_KEYS if key in items}
    return name, shared, items
