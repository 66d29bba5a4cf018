"""Where runs are tracked beside their folders (config group `tracking`), a file for each kind of store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_modules.config import TrackingSettings
from registries.registry import Registry

if TYPE_CHECKING:
    from studies.run.trackers.tracker import Tracker

TRACKERS = Registry("tracking store", package="studies.run.trackers")


def build_tracker(settings: TrackingSettings) -> Tracker:
    """The store that a config names."""
    return TRACKERS.build(settings.name, experiment=settings.experiment, **settings.arguments)
