"""The files in which a run says what it was told, and how it ended."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from registries.registry import UserError

log = logging.getLogger(__name__)

CONFIG_KEYS = ("model", "replacement", "dataset", "optimizer", "trainer", "seed", "plugins", "cache_dir")


def read_files(run_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config of a run, as it was recorded, and its result.

    Where the config's own file is damaged, it is taken as `result.json` holds it too.

    Raises:
        UserError: the folder is no run's, or both say too little.
    """
    for name in ("config.yaml", "result.json"):
        if not (run_dir / name).is_file():
            raise UserError(f"{run_dir} is not a run's folder: it has no {name}")
    result = _read_mapping(run_dir / "result.json", ("status",))
    try:
        return _read_mapping(run_dir / "config.yaml", CONFIG_KEYS), result
    except UserError as error:
        if not isinstance(result.get("config"), dict) or not result["config"].keys() >= set(CONFIG_KEYS):
            raise
        log.warning("%s; the config is taken from result.json", error)
        return result["config"], result


def _read_mapping(file: Path, keys: Sequence[str]) -> dict[str, Any]:
    """A JSON or YAML file of a run, as plain data. Raises UserError where it is damaged, or lacks one of the keys."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        json_text = file.suffix == ".json"
        content = json.loads(file.read_text()) if json_text else OmegaConf.to_container(OmegaConf.load(file))
    except (OSError, ValueError, RecursionError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{file} is damaged: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged: it holds no mapping")
    missing = [key for key in keys if key not in content]
    if missing:
        raise UserError(f"{file} is damaged: it has no {missing[0]!r}")
    return content
