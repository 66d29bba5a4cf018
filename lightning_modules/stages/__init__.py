"""What is trained in which order after surgery, a file for each kind of stage."""

from __future__ import annotations

from registries.registry import Registry

STAGES = Registry("recovery stage", package="lightning_modules.stages")
