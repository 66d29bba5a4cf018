"""The training curves of a run, kept in its folder whatever the tracking store is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CURVES = "curves.jsonl"
NO_METRICS = ("step", "epoch", "time")


class Point(NamedTuple):
    """A value of a metric: at which step, and when it was written, in seconds since 1970."""

    name: str
    step: int
    value: float
    time: float


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
