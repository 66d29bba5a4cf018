"""Which machine this is, and whether a process of it still runs."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
from functools import lru_cache
from pathlib import Path
from typing import Any


@lru_cache(maxsize=1)
def machine() -> str:
    """The scope of process numbers (the host, its boot and the process namespace), hashed to 12 hexadecimal digits.

    It differs between two containers that share a folder, even on one host.
    """
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.is_file():
        scope = [boot.read_text().strip(), os.readlink(namespace) if namespace.is_symlink() else ""]
    else:
        import psutil

        scope = [str(round(psutil.boot_time()))]
    return hashlib.sha256(" ".join([socket.gethostname(), *scope]).encode()).hexdigest()[:12]


def hardware() -> dict[str, Any]:
    """What a run computes on: processor, cores, threads that compute, memory in gigabytes, and the GPU, if any."""
    import psutil
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


@lru_cache(maxsize=1)
def _processor() -> str:
    """The name that the processor gives itself; where the system does not tell it, its kind."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def is_alive(pid: int, since: float) -> bool:
    """Whether the process that had this number on this machine at a time still runs; a later one may have it now."""
    import psutil

    try:
        process = psutil.Process(pid)
        return process.create_time() <= since and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False
