"""What a run says and records of a LoRA placement."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from lightning_modules.surgery.lora import Placed
from studies.report.display import show_placement
from studies.report.figures import plot_heat_map
from studies.run.files import read_checked, write_text
from studies.run.lifecycle import RunRecord

PLACEMENT = "placement.json"


def record_placement(record: RunRecord, name: str, placed: Placed) -> None:
    """Print the table; write it and the scores to `placement.json`, parameters by role to the metrics, heat maps."""
    rows, folder = placed.rows, record.folder.path
    show_placement(name, rows)
    by_role, by_layer = Counter(), Counter()
    for row in rows:
        by_role[row.role] += row.parameters
        by_layer[row.layer] += row.parameters
    content = {
        "placement": name,
        "rows": [row._asdict() for row in rows],
        "parameters_by_role": dict(by_role),
        "parameters_by_layer": dict(sorted(by_layer.items())),
        "scores": [
            {"module": linear.module, "role": linear.role, "layer": linear.layer, "score": score}
            for linear, score in placed.scores
        ],
    }
    write_text(folder / PLACEMENT, json.dumps(content, indent=2))
    record.folder.record(**{f"params/{role}": count for role, count in by_role.items()})
    plot_heat_map({(row.role, row.layer): row.rank for row in rows}, "rank", folder / "figures" / "placement.png")
    if placed.scores:
        scores = {(linear.role, linear.layer): score for linear, score in placed.scores}
        plot_heat_map(scores, "score of a parameter", folder / "figures" / "importance.png", logarithmic=True)


def read_placement(folder: Path) -> Mapping:
    """What `record_placement` wrote to a run's folder. Raises UserError where it is damaged."""
    return read_checked(folder / PLACEMENT)
