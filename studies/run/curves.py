"""The training curves of a run, kept in its folder whatever the tracking store is."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.loggers import Logger

CURVES = "curves.jsonl"
NO_METRICS = ("step", "epoch", "time")


class Point(NamedTuple):
    """A value of a metric: at which step, and when it was written, in seconds since 1970."""

    name: str
    step: int
    value: float
    time: float


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


def read_points(folder: Path, start: int = 0) -> tuple[list[Point], int]:
    """What was written from byte `start` of the curves on, in order, and the byte after the last whole line.

    Lines that a kill cut short, or that are damaged, are left out.
    """
    file = folder / CURVES
    if not file.is_file():
        return [], start
    with file.open("rb") as stream:
        stream.seek(start)
        content = stream.read()
    whole = content[: content.rfind(b"\n") + 1]
    return [point for line in whole.splitlines() for point in _points(line)], start + len(whole)


def _points(line: bytes) -> Iterator[Point]:
    try:
        values = json.loads(line)
    except ValueError:
        return
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
        return
    for name, value in values.items():
        if name not in NO_METRICS and isinstance(value, (int, float)):
            yield Point(name, values["step"], float(value), values.get("time", 0.0))


def latest(points: list[Point]) -> list[Point]:
    """The points with one value for each step: the last one, where a resumed run has repeated a step."""
    return list({(point.name, point.step): point for point in points}.values())


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """metric -> (step, value), by step; where a resumed run repeated a step, the later value."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for point in latest(read_points(folder)[0]):
        curves.setdefault(point.name, []).append((point.step, point.value))
    return {name: sorted(points) for name, points in curves.items()}
