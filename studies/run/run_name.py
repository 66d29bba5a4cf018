"""The name of a run: the model, what is done to it, and what was typed for it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning_modules.config import Config
from registries.settings import ModelSettings
from studies.config.groups import GROUPS, OPERATIONS
from studies.run.relevant_config import IRRELEVANT, IRRELEVANT_IN

LONGEST = 120  # characters; the names of folders have a limit


def run_name(cfg: Config, overrides: Sequence[str], keys: Sequence[str] | None = None) -> str:
    """Such as `tiny_phi-toroidal depth=4 lambda_distance=0.5`.

    Args:
        overrides: what was typed for the run.
        keys: of these, the ones that vary in the sweep that the run is of; None: all tell it from others.
    """
    words = [f"{model_label(cfg.model)}-{_operations(cfg)}", *dict.fromkeys(_words(overrides, keys))]
    return " ".join(words)[:LONGEST].rstrip()


def model_label(model: ModelSettings) -> str:
    """The model's name, or that of the folder or hub repository that was given in its place."""
    return Path(model.arguments.get("path") or model.name).name


def _operations(cfg: Config) -> str:
    """What is done to the model, in a word or two."""
    chosen = (getattr(cfg, group) for group in OPERATIONS)
    names = [option.name for option in chosen if option is not None]
    if cfg.source is not None:
        names.append(f"from-{model_label(cfg.source)}")
    return "-".join(names) or "none"


def _words(overrides: Sequence[str], keys: Sequence[str] | None) -> Iterator[str]:
    for line in overrides:
        key, equals, value = line.lstrip("+").partition("=")
        if not equals or not _tells(key) or (keys is not None and key not in keys):
            continue
        value = re.sub(r"[^\w.,+-]", "", value)
        yield f"{value}" if key in GROUPS else f"{key.rpartition('.')[2]}={value}"


def _tells(key: str) -> bool:
    """Whether a key says what is computed, and is not in the name already."""
    root, _, rest = key.partition(".")
    if "@" in root or (root in ("model", "source", *OPERATIONS) and not rest):
        return False
    return root not in ("hydra", *IRRELEVANT) and "/" not in root and rest not in IRRELEVANT_IN.get(root, ())
