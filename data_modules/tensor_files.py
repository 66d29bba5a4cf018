"""Files of tensors with a checksum of their content."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from registries.partial_files import atomic_write
from registries.registry import UserError


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, checked by the checksum in its metadata (earlier versions wrote none).

    Raises:
        UserError: the file is damaged, or cannot be read.
    """
    try:
        tensors, expected = read_content(file)
    except (SafetensorError, OSError, RuntimeError) as error:  # torch maps the file, and has errors of its own
        raise UserError(f"{file} is damaged ({error}); run the study again") from error
    if expected not in (None, tensors_sha256(tensors)):
        raise UserError(f"{file} is damaged (its content does not fit its checksum); run the study again")
    return tensors


def tensors_sha256(tensors: dict[str, torch.Tensor]) -> str:
    """Hash of names, dtypes, shapes and contents."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        # As bytes, since numpy knows no bf16.
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def read_content(file: Path) -> tuple[dict[str, torch.Tensor], str | None]:
    """The tensors of a safetensors file, and the checksum in its metadata."""
    with safe_open(file, framework="pt") as content:
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (it is no mapping)
        return tensors, (content.metadata() or {}).get("sha256")


def save_weights(parameters: Mapping[str, Any], file: Path) -> None:
    """Write weights as safetensors with a checksum of their content."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: parameter.detach().contiguous() for name, parameter in parameters.items()}
    try:
        with atomic_write(file) as partial:
            save_file(tensors, partial, metadata={"sha256": tensors_sha256(tensors)})
    except SafetensorError as error:
        if "os error 28" in str(error):  # safetensors reports a full disk in words alone
            raise OSError(errno.ENOSPC, str(error)) from error
        raise
