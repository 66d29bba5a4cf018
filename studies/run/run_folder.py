"""The folder of a run: its result, its status, and what it shares with the runs beside it."""

from __future__ import annotations

import atexit
import copy
import json
import os
import shutil
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from registries.machines import machine
from registries.partial_files import clear_partial_files
from studies.run.files import disk_error, write_text
from studies.run.results import Result, read_result


class RunFolder:
    """`<output_dir>/runs/<time>_<name>/`, with `result.json` as the account of the run, written at every change.

    Attributes:
        path: the folder.
        result: the content of `result.json`.
    """

    def __init__(self, path: Path, result: Result):
        self.path, self.result = path, result

    @classmethod
    def create(cls, output_dir: Path, name: str, **result: Any) -> RunFolder:
        """A new folder, with status `running`; a name may have several words."""
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        for number in range(1000):
            path = output_dir / "runs" / (f"{stamp}_{name.replace(' ', '_')}" + (f"_{number}" if number else ""))
            try:
                path.mkdir(parents=True)
                (path / "figures").mkdir()
                break
            except FileExistsError:  # a run beside this one was started in the same second
                continue
            except OSError as error:
                raise disk_error(error, path) from error
        folder = cls(path, {"status": "running", "metrics": {}, "baseline": {}, "name": name, **result})
        folder.write()
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run's folder. Raises UserError where there is no readable result."""
        return cls(path, read_result(path))

    def copied(self) -> RunFolder:
        """A copy that is gone with this process: for processes that keep no records of their own."""
        path = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, path, ignore_errors=True)
        return RunFolder(Path(shutil.copytree(self.path, path / self.path.name)), copy.deepcopy(self.result))

    def write(self) -> None:
        """Write `result.json` aside and rename it, so that a reader never sees half of it."""
        self.result |= {"pid": os.getpid(), "machine": machine(), "heartbeat": time.time()}
        write_text(self.path / "result.json", json.dumps(self.result, indent=2))

    def record(self, **metrics: float) -> None:
        """Add metrics to the result."""
        self.result["metrics"].update(metrics)
        self.write()


def clear_leftovers(output_dir: Path) -> None:
    """Remove what killed processes have left: partial files, and folders of runs in which nothing was recorded.

    The caller holds the lock under which runs are created.
    """
    clear_partial_files((output_dir / "sweeps").rglob("*.partial"))
    folders = [folder for folder in (output_dir / "runs").glob("*") if folder.is_dir()]
    for folder in folders:
        clear_partial_files(folder.rglob("*.partial"))
        if not any(path.is_file() for path in folder.rglob("*")):
            shutil.rmtree(folder, ignore_errors=True)
