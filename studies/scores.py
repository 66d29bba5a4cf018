"""Scores of untouched models, computed once per (weights, tokens, dtype, code) and shared by all runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn, uint8

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


def weights_sha256(model: nn.Module) -> str:
    """Hash of all weights with their names, shapes and dtypes."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(_bytes(parameter.detach()))
    return digest.hexdigest()


def tokens_sha256(blocks: Tensor) -> str:
    """Hash of blocks of tokens."""
    return hashlib.sha256(str(tuple(blocks.shape)).encode() + _bytes(blocks)).hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().contiguous().view(-1).view(uint8).numpy().tobytes()
