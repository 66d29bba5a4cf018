"""LightningModules and what they are made of. Importing this package imports no torch, Lightning or transformers."""

from __future__ import annotations

from typing import Any

from lightning_modules.optimizers import OPTIMIZERS
from lightning_modules.stages import STAGES

__all__ = ["OPTIMIZERS", "STAGES", "build_module", "load_exported", "load_module"]


def build_module(cfg: Any) -> Any:
    """The LightningModule of a composed config, surgery applied: `.model`, `.tokenizer`."""
    from lightning_modules import load

    return load.build_module(cfg)


def load_module(run_dir: Any) -> Any:
    """The LightningModule of a run's folder, with the weights that the run trained."""
    from lightning_modules import load

    return load.load_module(run_dir)


def load_exported(folder: Any) -> tuple[Any, Any]:
    """The model and the tokenizer of a folder that `studies.tools.export` wrote."""
    from lightning_modules.surgery import exported

    return exported.load_exported(folder)
