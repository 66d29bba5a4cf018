"""Files that are written under a partial name and then renamed, and the partial files that killed processes leave.

A partial file's name tells the process that writes it, so that a later process knows whether that one still runs.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

PARTIAL_SUFFIX = ".partial"
PARTIAL_SUFFIXES = (PARTIAL_SUFFIX, ".part")  # earlier versions wrote the second
STALE_SECONDS = 24 * 3600.0  # since the last write of a process on another machine, which cannot be seen from here


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


def partial_file(file: Path) -> Path:
    """The path at which this thread writes a file before it is renamed."""
    return file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}-{machine()}{PARTIAL_SUFFIX}")


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Gives the partial file to write, which becomes `file` at the end, and is removed where writing fails."""
    partial = partial_file(file)
    try:
        yield partial
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def clear_partial_files(files: Iterable[Path]) -> None:
    """Remove the partial files among these files that no running process writes."""
    for file in files:
        if file.suffix in PARTIAL_SUFFIXES and _is_abandoned(file):
            file.unlink(missing_ok=True)


def _is_abandoned(file: Path) -> bool:
    owner = file.name.removesuffix(PARTIAL_SUFFIX).rpartition(".")[2].split("-")
    try:
        written = file.stat().st_mtime
    except FileNotFoundError:
        return False
    if len(owner) == 3 and owner[0].isdigit() and owner[2] == machine():
        return int(owner[0]) != os.getpid() and not is_alive(int(owner[0]), written + 1)  # file times are coarse
    return time.time() - written > STALE_SECONDS
