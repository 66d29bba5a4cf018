"""The account of a sweep: how many jobs it has, what varies in it, and who started it."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from registries.machines import is_alive, machine
from studies.run.files import write_text

ACCOUNT = "sweep.json"


@dataclass(frozen=True)
class SweepAccount:
    """The content of `sweep.json`.

    Attributes:
        jobs: how many there will be; None where a sweeper decides it as it goes on.
        keys: that are swept over, as they were typed.
        started: when, in seconds since 1970.
        pid, machine: of the process that started the sweep.
    """

    jobs: int | None
    keys: list[str]
    started: float
    pid: int
    machine: str

    @classmethod
    def begin(cls, folder: Path, jobs: int | None, keys: list[str]) -> None:
        """Write the account of a sweep that this process starts."""
        account = cls(jobs, keys, time.time(), os.getpid(), machine())
        write_text(folder / ACCOUNT, json.dumps(asdict(account), indent=2))

    @classmethod
    def read(cls, folder: Path) -> SweepAccount | None:
        """The account in a sweep's folder; None where an earlier version has written none, or it is damaged."""
        try:
            return cls(**json.loads((folder / ACCOUNT).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def at_work(self) -> bool:
        """Whether the process that started the sweep still runs, as far as that can be seen from this machine."""
        return self.machine != machine() or is_alive(self.pid, self.started)

    def seconds_left(self, done: int) -> float | None:
        """About how long the other jobs take, if they take as long as those that are done; None if it is not known."""
        if self.jobs is None or not done:
            return None
        return (time.time() - self.started) / done * max(0, self.jobs - done)
