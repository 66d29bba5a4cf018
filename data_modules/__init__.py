"""Documents -> tokens -> blocks. Importing this package imports no component, no torch and no Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from data_modules.dataset_settings import DatasetSettings, dataset_group_errors
from registries.registry import Registry, UserError

if TYPE_CHECKING:
    from data_modules.data_module import BlockDataModule

DATASETS = Registry("dataset", package="data_modules.datasets")
TOKENIZERS = Registry("tokenizer", package="data_modules.tokenizers")

__all__ = ["DATASETS", "TOKENIZERS", "build_data_module", "dataset_errors"]


def dataset_errors(group: Any) -> list[str]:
    """Everything wrong with the config group `dataset`, one message each; cheap, and nothing is read or built."""
    return dataset_group_errors(DATASETS, group)


def build_data_module(cfg: Any, tokenizer: Any) -> BlockDataModule:
    """The data module of a config.

    Args:
        cfg: a mapping (a plain dict or OmegaConf's) with `dataset` (`name`, the keys of `DatasetSettings`, and the
            component's own keys), `seed`, `cache_dir`, and optionally `trainer.accumulate_grad_batches`.
        tokenizer: a Hugging Face tokenizer. Synthetic datasets use its length alone, as the vocabulary size.

    Raises:
        UserError: everything wrong with `cfg.dataset`, in one error.
    """
    errors = dataset_errors(cfg["dataset"])
    if errors:
        raise UserError(errors)
    from data_modules.data_module import BlockDataModule

    settings, trainer = DatasetSettings.read(cfg["dataset"]), cfg.get("trainer") or {}
    return BlockDataModule(
        build_corpus=lambda: DATASETS.build(settings.name, **settings.arguments),
        settings=settings,
        tokenizer=tokenizer,
        seed=cfg["seed"],
        cache_dir=cfg["cache_dir"],
        accumulate_grad_batches=trainer.get("accumulate_grad_batches") or 1,
    )
