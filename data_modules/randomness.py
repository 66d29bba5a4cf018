"""Random numbers that depend on their purpose alone, never on what was drawn before."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def generator(*purpose: str | int) -> torch.Generator:
    """A generator seeded by its purpose, for example `generator("validation", seed)`."""
    import torch

    digest = hashlib.sha256(repr(purpose).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
