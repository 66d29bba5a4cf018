"""The training curves of a run, kept in its folder whatever the tracking store is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger


class CurveFile(Logger):
    """A Lightning logger that appends `{"step": ..., metric: value}` lines to `curves.jsonl`."""

    def __init__(self, folder: Path):
        super().__init__()
        self.file = folder / "curves.jsonl"
        self.first_step = 0  # of the stage that is running: steps are counted through all stages

    @property
    def name(self) -> str:
        return "curves"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the parameters are in config.yaml."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self.file.open("a") as stream:
            stream.write(json.dumps({"step": self.first_step + (step or 0), **metrics}) + "\n")


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """metric -> (step, value), by step; where a resumed run repeated a step, the later value."""
    curves: dict[str, dict[int, float]] = {}
    file = folder / "curves.jsonl"
    for line in file.read_text(errors="replace").splitlines() if file.is_file() else []:
        try:
            point = json.loads(line)
            step = point.pop("step")
        except (ValueError, AttributeError, KeyError, TypeError):  # a line that a kill or the disk has damaged
            continue
        point.pop("epoch", None)
        for name, value in point.items():
            curves.setdefault(name, {})[step] = value
    return {name: sorted(points.items()) for name, points in curves.items()}
