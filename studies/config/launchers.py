"""Hydra's plugins that run the jobs of a sweep, or choose them, and the extra of this project that installs each."""

from __future__ import annotations

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from registries.option import CONF

EXTRAS = {  # package of the plugin -> the extra
    "hydra_plugins.hydra_joblib_launcher": "sweeps",
    "hydra_plugins.hydra_optuna_sweeper": "sweeps",
    "hydra_plugins.hydra_ray_launcher": "ray",
    "hydra_plugins.hydra_submitit_launcher": "slurm",
}


def missing_extras(cfg: DictConfig) -> list[str]:
    """What is wrong where a plugin that a composed config names, with Hydra's own part, is not installed."""
    errors = []
    chosen = OmegaConf.select(cfg, "hydra.runtime.choices") or {}
    for part in ("hydra.launcher", "hydra.sweeper"):
        target = str(OmegaConf.select(cfg, f"{part}._target_"))
        extra = EXTRAS.get(".".join(target.split(".")[:2]))
        if extra is not None and target not in Plugins.instance().class_name_to_class:
            group = part.replace(".", "/")
            errors.append(f"{group}={chosen.get(group, target)} needs the extra {extra}: pip install -e '.[{extra}]'")
    return errors


def prefer_own_options() -> None:
    """Take the plugins' own options out of Hydra's store where `conf/` has one of the same name.

    Hydra would check ours against theirs: it warns of that in every process, and refuses keys that theirs lack.
    """
    Plugins.instance()  # which finds the plugins, and they store their options
    for group in ("launcher", "sweeper"):
        stored = ConfigStore.instance().repo.get("hydra", {}).get(group, {})
        for file in (CONF / "hydra" / group).glob("*.yaml"):
            stored.pop(file.name, None)
