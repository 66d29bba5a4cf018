"""Writes the training curves of a run to its folder, whatever the tracking store is."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from studies.run.curves import CURVES


class CurveFile(Logger):
    """A Lightning logger that appends `{"step": ..., "time": ..., metric: value}` lines to `curves.jsonl`."""

    def __init__(self, folder: Path):
        super().__init__()
        self.file = folder / CURVES
        self.first_step = 0  # of the stage that is running: steps are counted through all stages
        _end_last_line(self.file)

    @property
    def name(self) -> str:
        return "curves"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the parameters are in config.yaml."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        line = {"step": self.first_step + (step or 0), "time": round(time.time(), 3), **metrics}
        with self.file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")


def _end_last_line(file: Path) -> None:
    """End a line that a kill cut short, so that the next one does not become part of it."""
    if not file.is_file():
        return
    with file.open("ab+") as stream:
        if stream.seek(0, os.SEEK_END):
            stream.seek(-1, os.SEEK_END)
            if stream.read() != b"\n":
                stream.write(b"\n")
