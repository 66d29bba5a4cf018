"""What is trained in which order after surgery, a file for each kind of stage."""

from __future__ import annotations

from lightning_modules.stages.stage import Loss, Stage, Workspace
from registries.registry import Registry

STAGES = Registry("recovery stage", package="lightning_modules.stages")

__all__ = ["STAGES", "Loss", "Stage", "Workspace"]
