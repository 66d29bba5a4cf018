"""The sign of life of a run, and its memory."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import Any

import psutil

from studies.run.run_folder import RunFolder

HEARTBEAT_SECONDS = 5.0
SAMPLE_SECONDS = 0.2


class Heartbeat:
    """Renews the heartbeat of a run and samples the process's resident memory, in a thread.

    The process's own high-water mark would do for the memory of a single run, but never falls within a sweep.
    """

    def __init__(self, folder: RunFolder):
        self.folder, self.peak_bytes = folder, 0
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Heartbeat:
        import torch

        self._sample()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()  # it was the peak of the jobs before it in a sweep
        self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stop.set()
        self._thread.join()

    def peak_mb(self) -> float:
        """Peak memory in megabytes: allocated on the GPU where there is one, else resident."""
        import torch

        self._sample()
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else self.peak_bytes
        return peak / 2**20

    def _beat(self) -> None:
        beats = 0
        while not self._stop.wait(SAMPLE_SECONDS):
            self._sample()
            beats += 1
            if beats % round(HEARTBEAT_SECONDS / SAMPLE_SECONDS) == 0:
                with suppress(OSError):  # a disk that cannot be written for a while ends no run
                    os.utime(self.folder.path / "result.json")

    def _sample(self) -> None:
        self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss)
