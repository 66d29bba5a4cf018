"""Files that are written aside and renamed, and what killed processes leave of them.

A partial file's name tells the process that writes it, so that every later process knows whether anyone still does.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

SUFFIX = ".partial"
SUFFIXES = (SUFFIX, ".part")  # that of earlier versions too
STALE_SECONDS = 24 * 3600.0  # of a process that cannot be seen from here, another machine's


@lru_cache(maxsize=1)
def machine() -> str:
    """Where process numbers mean what they mean here: the host, its boot and the namespace, as 12 hexadecimal digits.

    Two containers that share a folder differ in it, also on one host.
    """
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.is_file():
        where = [boot.read_text().strip(), os.readlink(namespace) if namespace.is_symlink() else ""]
    else:
        import psutil

        where = [str(round(psutil.boot_time()))]
    return hashlib.sha256(" ".join([socket.gethostname(), *where]).encode()).hexdigest()[:12]


def is_alive(pid: int, since: float) -> bool:
    """Whether the process of this machine that had this number at a time (another may have got it later) still runs."""
    import psutil

    try:
        process = psutil.Process(pid)
        return process.create_time() <= since and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False


def partial_file(file: Path) -> Path:
    """Where this thread writes a file before it is renamed."""
    return file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}-{machine()}{SUFFIX}")


def clear_partial_files(files: Iterable[Path]) -> None:
    """Remove those of these files that are partial files which no living process writes."""
    for file in files:
        if file.suffix in SUFFIXES and _is_left(file):
            file.unlink(missing_ok=True)


def _is_left(file: Path) -> bool:
    owner = file.name.removesuffix(SUFFIX).rpartition(".")[2].split("-")
    try:
        written = file.stat().st_mtime
    except FileNotFoundError:
        return False
    if len(owner) == 3 and owner[0].isdigit() and owner[2] == machine():
        return int(owner[0]) != os.getpid() and not is_alive(int(owner[0]), written + 1)  # clocks of files are coarse
    return time.time() - written > STALE_SECONDS
