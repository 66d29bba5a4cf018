"""A run's model, data, source and machine in the fields that MLflow has for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SAMPLE_TABLE = "samples_table.json"
DIGEST = 12  # digits of the hash of data, as the page shows it
CONTEXTS = {"train": "training", "validation": "validation", "test": "test"}  # split -> as MLflow calls it


def tags_of(result: Mapping[str, Any]) -> dict[str, str]:
    """Source, model and machine of a run."""
    config, hardware = result["config"], result.get("hardware", {})
    revision = result.get("revision") or {}
    tags = {
        "mlflow.source.name": "train.py",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": revision.get("commit"),
        "uncommitted changes": str(revision["changed"]).lower() if revision else None,
        "model": config["model"].get("path") or config["model"]["name"],
        "processor": hardware.get("processor"),
        "gpu": hardware.get("gpu"),
    }
    return {name: str(text) for name, text in tags.items() if text}


def inputs_of(result: Mapping[str, Any]) -> list[Any]:
    """The splits of a run's data, as MLflow's dataset inputs."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data, path = result["dataset"], result["config"]["dataset"].get("path")
    about = {"digest": data["sha256"][:DIGEST], "source_type": "graftlab", "source": json.dumps({"path": path})}
    return [
        DatasetInput(
            Dataset(f"{data['name']} {split}", **about, profile=json.dumps(data[split])),
            [InputTag("mlflow.data.context", context)],
        )
        for split, context in CONTEXTS.items()
        if split in data
    ]


def sample_table(folder: Path) -> dict[str, list] | None:
    """The samples of a run's folder, as a table that MLflow's UI shows; None where there are none."""
    try:
        samples = json.loads((folder / "samples.json").read_text())
        columns = list(dict.fromkeys(key for sample in samples for key in sample))
    except (OSError, ValueError, TypeError):  # it is written anew by the next run that goes on here
        return None
    return {"columns": columns, "data": [[sample.get(column, "") for column in columns] for sample in samples]}
