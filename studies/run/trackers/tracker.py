"""What a tracker is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol


class RunTracker(Protocol):
    """What follows a run: a Lightning logger that keeps what the run's folder has in a store.

    Attributes:
        first_step: of the stage that is running; steps are counted through all stages.
    """

    first_step: int

    def close(self, folder: Any) -> None:
        """End the run's copy as the run of this `RunFolder` has ended."""
        ...


class Tracker(Protocol):
    """What a registered tracking store builds, with `experiment` and its own keys of the config.

    The folder of a run is the account of it; a store has a copy. Whatever the store does, the run goes on.
    """

    def open(self, folder: Path, output_dir: Path) -> RunTracker:
        """What follows the run in this folder. `output_dir` is that of the config."""
        ...

    def log_sweep(self, folder: Path, output_dir: Path, at_end: bool) -> None:
        """Keep the files of a sweep's folder, and make it the parent of its runs; while it goes on, without waiting."""
        ...
