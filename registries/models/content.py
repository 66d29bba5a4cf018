"""What tells the files of a model from others, whatever their folder is called."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

# Beside the weights: what decides the model and its tokens. How somebody else would decode is not ours to follow.
MODEL_FILES = ("config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt")
WEIGHTS = "*.safetensors"


def folder_sha256(folder: Path) -> str:
    """Hash of the weights, the config and the tokenizer in a folder."""
    names = sorted(
        {file.name for pattern in (*MODEL_FILES, WEIGHTS) for file in folder.glob(pattern) if file.is_file()}
    )
    digest = hashlib.sha256()
    for name in names:
        file = folder / name
        state = file.stat()
        digest.update(f"{name} {_file_sha256(file, state.st_size, state.st_mtime_ns)};".encode())
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _file_sha256(file: Path, size: int, changed_ns: int) -> str:
    """Hash of a file, which the jobs of a sweep take once (0.4 s for a gigabyte) as long as it is not written to."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
