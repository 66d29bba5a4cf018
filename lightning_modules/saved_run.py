"""A run as it was recorded: its typed config, and its result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_modules.config import Config, read_config
from lightning_modules.run_files import read_files


def read_run(run_dir: Path) -> tuple[Config, dict[str, Any]]:
    """The config of a run and its result.

    Raises:
        UserError: the folder is no run's, or both say too little.
    """
    plain, result = read_files(run_dir)
    return read_config(plain), result
