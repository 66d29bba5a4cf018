"""Scores of untouched models, computed once per (weights, tokens, dtype, code) and shared by all runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from studies.fingerprint import code_version
from studies.run_folder import write_text


def cached(cache_dir: str, key: list[Any], compute: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], bool]:
    """What `compute` gave for this key, and whether it was computed now. A damaged entry is computed anew."""
    digest = hashlib.sha256(json.dumps([*key, code_version()], sort_keys=True).encode()).hexdigest()[:24]
    file = Path(cache_dir).expanduser() / "scores" / f"{digest}.json"
    if file.is_file():
        try:
            return json.loads(file.read_text()), False
        except ValueError:
            print(f"the cached score {file} is damaged: it is computed anew")
    value = compute()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(value))
    return value, True
