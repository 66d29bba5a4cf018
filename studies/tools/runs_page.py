"""Set up the columns that the runs page of MLflow's UI shows, and print the page's address.

python -m studies.tools.runs_page outputs [address of the UI]

Shown are the keys that vary among the runs, those first that were typed most, and the headline metrics.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from registries.registry import UserError
from studies.report.sweep_table import flat_config, varied_keys
from studies.run.mlflow_copy import legal_name
from studies.run.mlflow_store import DEFAULT_STORE, in_words, open_store
from studies.run.results import runs

UI = "http://127.0.0.1:5000"
KEY = "graftlab"  # of the view
MOST_KEYS = 8
HEADLINES = ("val/loss", "val/ppl", "val/bpb", "val/ppl_ratio", "test/loss", "params/trainable", "time/train_s")
ATTRIBUTES = ("Dataset", "Source")


def runs_page(output_dir: Path, address: str = UI) -> list[str]:
    """Set up the view in the store of an output folder, for every experiment that runs there were sent to.

    Returns:
        The address of the page of each experiment.

    Raises:
        UserError: no run there is tracked, or the store cannot be used.
    """
    by_experiment: dict[str, list[Mapping[str, Any]]] = {}
    for _, result in runs(output_dir):
        tracking = result.get("config", {}).get("tracking", {"name": "none"})
        if tracking["name"] == "mlflow":
            by_experiment.setdefault(tracking["experiment"], []).append(result)
    if not by_experiment:
        raise UserError(f"{output_dir} has no run that is tracked in a store of its own (tracking=mlflow)")
    pages = []
    for name, results in sorted(by_experiment.items()):
        with in_words(str(output_dir)):
            store = open_store(DEFAULT_STORE, name, output_dir)
            view = json.dumps(_view(results))
            store.client.set_experiment_tag(store.experiment, f"mlflow.sharedViewState.{KEY}", view)
        page = f"{address}/#/experiments/{store.experiment}/runs"
        pages.append(f"{page}?viewStateShareKey={KEY}&workflowType=machine_learning")
    return pages


def _view(results: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The state of the page, as MLflow's UI keeps it in a tag of the experiment."""
    results = list(results)
    typed = Counter(line.partition("=")[0] for result in results for line in result.get("overrides", []))
    flat = [flat_config(result["config"]) for result in results]
    keys = sorted(varied_keys(flat), key=lambda key: (-max(typed[key], typed[key.removesuffix(".name")]), key))
    known = {name for result in results for name in result["metrics"]}
    columns = [f"attributes.`{name}`" for name in ATTRIBUTES]
    columns += [f"params.`{legal_name(key)}`" for key in keys[:MOST_KEYS]]
    columns += [f"metrics.`{name}`" for name in HEADLINES if name in known]
    return {"selectedColumns": columns, "orderByKey": "attributes.start_time", "orderByAsc": False}


def main(output_dir: str, address: str = UI) -> None:
    """The command line."""
    for page in runs_page(Path(output_dir), address):
        print(page)


if __name__ == "__main__":
    from studies.tools.command import run_tool

    run_tool(main, __doc__)
