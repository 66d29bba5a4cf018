"""How far the copy of a run or a sweep in a tracking store has come: the `tracking.json` of its folder."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studies.run.mlflow_store import DEFAULT_STORE, own_address, portable

STATE = "tracking.json"
CLOSE_SECONDS = 20.0  # that the end of a run waits for the store


def destination_of(uri: str, experiment: str, folder: Path, output_dir: Path) -> dict[str, str]:
    """Store and experiment that the copy of a folder belongs to, so that they can be found later, from anywhere."""
    uri = portable(uri, output_dir)
    if uri == DEFAULT_STORE and output_dir.is_dir() and folder.resolve().parent.parent != output_dir.resolve():
        uri = own_address(output_dir)
    return {"uri": uri, "experiment": experiment}


def new_state(destination: Mapping[str, str]) -> dict[str, Any]:
    """The state of what was not yet sent at all."""
    return {**destination, "key": uuid.uuid4().hex, "run_id": None, "done": False}


def read_state(folder: Path) -> dict[str, Any]:
    """The content of a folder's `tracking.json`; empty where there is none, or it is damaged."""
    try:
        state = json.loads((folder / STATE).read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) and {"uri", "experiment", "key", "run_id"} <= state.keys() else {}
