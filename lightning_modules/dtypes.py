"""The dtypes that weights have and that a model computes in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

BFLOAT16_WIDTH = 512
MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # precision -> what products are computed in


def resolve_dtype(dtype: str, frozen: bool, config: Mapping[str, Any] | None) -> torch.dtype:
    """The dtype of the weights.

    `auto` is fp32, but bf16 (fp16 on a GPU without it) for frozen weights where the device computes it fast and the
    model is wide enough to gain. Without a config (the model is not downloaded yet) it counts as wide enough.
    """
    if dtype == "auto":
        config = config or {}  # scoring needs no role map, so the family may be unknown
        wide = (config.get("hidden_size") or config.get("n_embd") or BFLOAT16_WIDTH) >= BFLOAT16_WIDTH
        return (_two_bytes() or torch.float32) if frozen and wide else torch.float32
    return getattr(torch, dtype)


def _two_bytes() -> torch.dtype | None:
    """The dtype of two bytes that this machine computes fast; on a GPU without bf16 it is fp16."""
    if fast_bfloat16():
        return torch.bfloat16
    return torch.float16 if torch.cuda.is_available() else None


def fast_bfloat16() -> bool:
    """Whether this machine has bf16 arithmetic in hardware (a CPU with avx512_bf16 or AMX, or a GPU)."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@contextmanager
def in_precision(precision: str | None, device: torch.device) -> Iterator[None]:
    """Within this context, computing is done as `trainer.precision` says, whoever asks for it; None: as it is."""
    if precision is None:
        yield
        return
    dtype = MIXED.get(precision)
    with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        yield
