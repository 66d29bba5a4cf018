"""The part of a config that decides what is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Where and how a run is done, but not what it computes.
IRRELEVANT = {"tracking", "resume", "skip_finished", "on_failure", "max_failures", "on_oom", "output_dir", "cache_dir"}
IRRELEVANT |= {"plugins"}  # their code counts
IRRELEVANT |= {"activations", "experiment", "size"}  # caching changes no result; the values that the others set count
IRRELEVANT_IN = {
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
    kept = {key: value for key, value in cfg.items() if key not in IRRELEVANT}
    for group, keys in IRRELEVANT_IN.items():
        kept[group] = {key: value for key, value in kept[group].items() if key not in keys}
    return kept
