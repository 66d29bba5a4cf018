"""Whether scores find the layers that matter: what LoRA on one layer at a time gains, against the scores.

python -m studies.tools.layer_effects FIGURE.png OUTPUT_DIR [more output folders]

Takes the finished runs of `experiment=placement_layers` (the measured effect of a layer) and every run of
`placement=importance` on the same model and data (the scores), prints Spearman's rank correlation for each score and
plots one against the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from registries.registry import UserError
from studies.run.placement_table import PLACEMENT, read_placement
from studies.run.results import runs


def measured_effects(results: Iterable[tuple[Path, Mapping[str, Any]]]) -> dict[int, float]:
    """Layer -> by how much LoRA on it alone lowers the validation loss, in nats per token."""
    effects = {}
    for folder, result in results:
        layers = {row["layer"] for row in read_placement(folder)["rows"]}
        if len(layers) == 1:
            effects[layers.pop()] = result["baseline"]["loss"] - result["metrics"]["val/loss"]
    return effects


def layer_scores(folder: Path) -> dict[int, float]:
    """Layer -> sum of the scores of its linear layers."""
    sums: dict[int, float] = defaultdict(float)
    for score in read_placement(folder)["scores"]:
        sums[score["layer"]] += score["score"]
    return dict(sums)


def rank_correlation(scores: Mapping[int, float], effects: Mapping[int, float]) -> float:
    """Spearman's, over the layers whose effect was measured."""
    from scipy.stats import spearmanr

    layers = sorted(effects)
    return float(spearmanr([scores[layer] for layer in layers], [effects[layer] for layer in layers]).statistic)


def main(*arguments: str) -> None:
    """The command line."""
    from studies.report.figures import plot_scatter
    from studies.report.printed_tables import show_rows

    if len(arguments) < 2:
        raise UserError("usage: python -m studies.tools.layer_effects FIGURE.png OUTPUT_DIR [more output folders]")
    figure, *folders = arguments
    done = [run for folder in folders for run in runs(Path(folder)) if run[1]["status"] == "finished"]
    single = [run for run in done if run[1]["config"]["experiment"]["name"] == "placement_layers"]
    if not single:
        raise UserError(f"no finished run of placement_layers in {', '.join(folders)}: python train.py experiment=...")
    about = lambda result: (result["config"]["model"], result["dataset"]["sha256"])  # noqa: E731
    effects = measured_effects(run for run in single if about(run[1]) == about(single[0][1]))
    scores: dict[str, dict[int, float]] = {}
    for folder, result in done:
        placement = result["config"]["placement"]
        same_model = result["config"]["model"] == single[0][1]["config"]["model"]
        if placement["name"] == "importance" and same_model and (folder / PLACEMENT).is_file():
            scores.setdefault(placement["score"], layer_scores(folder))
    if len(effects) < 3 or not scores:
        raise UserError(f"{len(effects)} layers measured and {len(scores)} scores: run experiment=placement_scores too")
    rows = [[name, f"{rank_correlation(values, effects):+.2f}", str(len(effects))] for name, values in scores.items()]
    show_rows(["score", "rank correlation with the effect", "layers"], rows)
    points = {
        name: [(values[layer], effects[layer], str(layer)) for layer in effects] for name, values in scores.items()
    }
    plot_scatter(points, "score of the layer", "loss that LoRA on it saves (nats per token)", Path(figure))


if __name__ == "__main__":
    from studies.tools.command import run_tool

    run_tool(main, __doc__)
