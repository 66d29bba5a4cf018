"""The processes of a data-parallel run. All of them run the study; only the first one scores, prints and keeps records.

`torchrun` starts them and tells each its place through the environment (see `studies.config.launch`).
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from registries.registry import UserError

T = TypeVar("T")

WAITING_TIME = timedelta(days=7)  # for the others to wait, while the first one scores

_alone = False  # whether the first process is at something that the others wait for


def process_count() -> int:
    """How many processes there are, on all machines."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first() -> bool:
    """Whether this is the process that keeps records, as it is where there is only one."""
    return int(os.environ.get("RANK", 0)) == 0


def local_rank() -> int:
    """The number of this process among those of its machine, and of the GPU that it computes on."""
    return int(os.environ.get("LOCAL_RANK", 0))


def require_processes(devices: int) -> None:
    """Raise UserError unless there is a process for each device of this machine."""
    count = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if count != devices:
        raise UserError(
            f"trainer.devices={devices} needs as many processes, and there are {count}: start it as `python train.py "
            "...`, which starts them, or by `torchrun --nproc-per-node` with the same number"
        )


def from_first(compute: Callable[[], T]) -> T:
    """What `compute` gives in the first process, for all of them; an error there is raised by all.

    Within `compute` there is only the first process.
    """
    global _alone
    if process_count() == 1 or _alone:
        return compute()
    from torch import device, distributed

    _join()
    outcome = [None, None]
    if is_first():
        _alone = True
        try:
            outcome[0] = compute()
        except Exception as error:
            outcome[1] = error
        finally:
            _alone = False
    distributed.broadcast_object_list(outcome, device=device("cpu"))
    value, error = outcome
    if error is not None:
        raise error
    return value


def _join() -> None:
    """Make the group of all processes, of which Lightning then makes use."""
    import torch
    from torch import distributed

    if not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank())
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=WAITING_TIME)
        atexit.register(distributed.destroy_process_group)
