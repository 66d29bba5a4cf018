"""A run that does not fit the memory, done again with smaller batches."""

from __future__ import annotations

import copy
import gc
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import DictConfig, read_write

from registries.memory_errors import lacks_memory

Run = Callable[[Any, Sequence[str]], dict[str, Any]]


def run_with_retries(
    cfg: DictConfig, overrides: Sequence[str], run: Run, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Run a config; with `on_oom=halve`, again at half the batch and twice the accumulation, while it lacks memory.

    Args:
        overrides: what was typed for it; of a retry, with the two keys that were changed.
        tell: gets a line about each retry.

    Returns:
        The content of `result.json`.
    """
    overrides = list(overrides)
    while True:
        try:
            return run(cfg, overrides)
        except Exception as error:
            batch, gathered = cfg["dataset"]["batch_size"], cfg["trainer"]["accumulate_grad_batches"]
            if cfg["on_oom"] != "halve" or not lacks_memory(error) or batch == 1:
                raise
            traceback.clear_frames(error.__traceback__)  # it holds the model
        changes = {"dataset.batch_size": batch // 2, "trainer.accumulate_grad_batches": 2 * gathered}
        cfg = _changed(cfg, changes)
        overrides += [f"{key}={value}" for key, value in changes.items()]
        gc.collect()
        tell(f"out of memory with batches of {batch}: again with batches of {batch // 2}, {2 * gathered} for a step")


def _changed(cfg: DictConfig, changes: dict[str, int]) -> DictConfig:
    cfg = copy.deepcopy(cfg)
    with read_write(cfg):
        for key, value in changes.items():
            group, _, name = key.partition(".")
            cfg[group][name] = value
    return cfg
