"""What a run says and records of a LoRA placement.

python -m studies.placements model=dialogpt_medium placement=attention placement.rank=16

prints the table of a placement from the model's config alone.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

from omegaconf import OmegaConf

from lightning_modules.placement import Placed
from registries.registry import UserError, parameters
from studies.display import show_placement
from studies.figures import plot_heat_map
from studies.recording import Record
from studies.run_folder import read_checked, write_text

PLACEMENT = "placement.json"


def record_placement(record: Record, name: str, placed: Placed) -> None:
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


def main(*overrides: str) -> None:
    """The command line."""
    from lightning_modules.options import build_source, placement_arguments
    from registries import PLACEMENTS
    from studies.compose import compose

    cfg = OmegaConf.to_container(compose(overrides), resolve=True)
    name, config = cfg["placement"]["name"], build_source(cfg).config()
    if name == "none" or config is None or "scores" in parameters(PLACEMENTS.get(name)):
        raise UserError(
            f"placement={name} of model={cfg['model']['name']} has no table before a run: name another placement "
            "(importance looks at the data first), or a model whose config is here"
        )
    show_placement(name, PLACEMENTS.build(name, model=SimpleNamespace(config=config), **placement_arguments(cfg)))


if __name__ == "__main__":
    from studies.tools import run_tool

    run_tool(main, __doc__)
