"""Whether an error says that memory was short."""

from __future__ import annotations


def lacks_memory(error: BaseException) -> bool:
    """Whether an error is that of a machine without enough memory."""
    import torch

    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
