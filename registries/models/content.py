"""The identity of a model folder: a hash of its files, whatever the folder's name."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

# These files decide the model and its tokens. Settings of decoding are not used.
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt")
MODEL_FILES = ("*.safetensors", "config.json", *TOKENIZER_FILES)


def folder_sha256(folder: Path) -> str:
    """Hash of the weights, the config and the tokenizer in a folder."""
    names = sorted({file.name for pattern in MODEL_FILES for file in folder.glob(pattern) if file.is_file()})
    digest = hashlib.sha256()
    for name in names:
        file = folder / name
        state = file.stat()
        digest.update(f"{name} {_file_sha256(file, state.st_size, state.st_mtime_ns)};".encode())
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _file_sha256(file: Path, size: int, changed_ns: int) -> str:
    """Hash of a file (0.4 s for a gigabyte), kept for the jobs of a sweep until the file changes."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
