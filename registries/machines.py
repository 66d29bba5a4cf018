"""Which machine this is, and whether a process of it still runs."""

from __future__ import annotations

import hashlib
import os
import socket
from functools import lru_cache
from pathlib import Path


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


def is_alive(pid: int, since: float) -> bool:
    """Whether the process that had this number on this machine at a time still runs; a later one may have it now."""
    import psutil

    try:
        process = psutil.Process(pid)
        return process.create_time() <= since and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False
