"""What makes two runs the same: the config as far as it matters, the data, and the code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("registries", "lightning_modules", "data_modules", "studies")
LIBRARIES = ("torch", "transformers", "lightning", "peft", "datasets", "mlflow", "hydra-core")

# Where and how a run is done, but not what it computes.
_IRRELEVANT = {"tracking", "resume", "skip_finished", "on_failure", "output_dir", "cache_dir", "plugins"}
_IRRELEVANT |= {"activations", "experiment", "size"}  # caching changes no result; the values that the others set count
_IRRELEVANT_IN = {
    "trainer": {
        "name",
        "devices",
        "accelerator",
        "enable_progress_bar",
        "log_every_n_steps",
        "checkpoint_every_n_steps",
        "profiler",
    },
    "dataset": {"num_workers", "path"},
}


def relevant(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that decides what is computed."""
    kept = {key: value for key, value in cfg.items() if key not in _IRRELEVANT}
    for group, keys in _IRRELEVANT_IN.items():
        kept[group] = {key: value for key, value in kept[group].items() if key not in keys}
    return kept


def fingerprint(cfg: Mapping[str, Any], data_sha256: str) -> str:
    """Sixteen hexadecimal digits that two runs share if they compute the same."""
    text = json.dumps([relevant(cfg), data_sha256, code_version()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def code_version() -> str:
    """Hash of this project's source."""
    root = Path(__file__).resolve().parent.parent
    files = sorted([root / "train.py", *(file for name in PACKAGES for file in (root / name).rglob("*.py"))])
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    import platform

    libraries = {name: version(name) for name in LIBRARIES}
    return {"graftlab": code_version(), "python": platform.python_version(), **libraries}
