"""What makes two runs the same: the config as far as it matters, the weights, the data, and the code."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import Any

from data_modules.tokens import tokenizer_fingerprint
from lightning_modules.config import Config
from lightning_modules.model_identity import model_identity
from registries.models.pretrained import PretrainedModel
from studies.run.code_version import model_code, run_code
from studies.run.relevant_config import relevant

LIBRARIES = ("torch", "transformers", "lightning", "peft", "datasets", "mlflow", "hydra-core")

# What these name counts by its content; tables still show them.
BY_CONTENT = {
    "model": ("path", "revision", "tokenizer"),
    "source": ("path", "revision", "tokenizer"),
    "expansion": ("run",),
}


def fingerprint(cfg: Config, data_sha256: str) -> str:
    """Sixteen hexadecimal digits that two runs share if they compute the same."""
    named = relevant(cfg.plain)
    for group, keys in BY_CONTENT.items():
        named[group] = {key: value for key, value in named.get(group, {}).items() if key not in keys}
    content = {"model": _identity(cfg.model_loader())}
    if cfg.source is not None:
        content["source"] = _identity(cfg.source_loader())
    named["recovery"] = [[name, {**keys, "teacher": None}] for name, keys in cfg.recovery.items()]  # their order counts
    teachers = {name: keys["teacher"] for name, keys in cfg.recovery.items() if keys.get("teacher")}
    content |= {f"teacher of {name}": PretrainedModel(path).identity() for name, path in teachers.items()}
    text = json.dumps([named, content, data_sha256, run_code(cfg)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _identity(loader: Any) -> str:
    """What tells the weights of a model from others; of a loader that does not say it, its config."""
    return loader.identity() if hasattr(loader, "identity") else json.dumps(loader.config(), sort_keys=True)


def model_account(model: Any, tokenizer: Any, cfg: Config, changed: bool = False) -> dict[str, Any]:
    """What the numbers of a model depend on beside its input: weights, config, tokenizer, precision and code.

    Every cached score, sample and activation is named by this, and by what went in.

    Args:
        model: as it is now.
        changed: whether it was operated on or trained, so that the code of components counts, and what they were told.
    """
    changes = {key: cfg.plain.get(key) for key in ("replacement", "placement", "expansion")} if changed else {}
    return {
        **model_identity(model),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "precision": cfg.trainer.precision,
        "code": run_code(cfg) if changed else model_code(cfg),
        "changes": changes,
    }


def versions(cfg: Config) -> dict[str, str]:
    """The versions that a result depends on."""
    import platform

    libraries = {name: version(name) for name in LIBRARIES}
    return {"graftlab": run_code(cfg), "python": platform.python_version(), **libraries}
