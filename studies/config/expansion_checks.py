"""What is wrong with the group `expansion`, as far as it can be told without weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_modules.config import is_chosen
from lightning_modules.run_files import read_files
from registries import EXPANSIONS, UserError
from registries.option import split_keys
from registries.settings import ExpansionSettings
from studies.config.component_checks import Parts, group_errors, model_config
from studies.config.two_model_checks import starts_at_random

OTHERS = ("replacement", "placement", "adapter", "compressor")


def expansion_errors(cfg: Parts) -> list[str]:
    """What is wrong with the group `expansion`, for the model and the run."""
    group = cfg["expansion"]
    if not is_chosen(group):
        return []
    errors = group_errors("expansion", group)
    if errors:
        return errors
    errors += [
        f"expansion={group['name']} and {key}={cfg[key]['name']} are studies of their own: leave one out"
        for key in OTHERS
        if is_chosen(cfg[key])
    ]
    if cfg["recovery"]:
        errors.append(
            f"recovery={list(cfg['recovery'])}: expansion.mode={group['mode']} decides what trains; leave it out"
        )
    if cfg["model"].get("dtype") in ("bfloat16", "float16"):
        errors.append(
            f"model.dtype={cfg['model']['dtype']}: what is new trains in float32, beside what is old; set it to auto"
        )
    errors += _model_errors(cfg) if group["run"] is None else _run_errors(Path(group["run"]).expanduser(), cfg)
    config = model_config(cfg)
    if errors or config is None:
        return errors
    try:
        EXPANSIONS.build(group["name"], **split_keys(ExpansionSettings, group)[1]).changes(config)
    except UserError as error:
        errors += error.messages
    return errors


def _model_errors(cfg: Parts) -> list[str]:
    """Without a run, the model must be a trained one."""
    model, errors = cfg["model"]["name"], []
    if starts_at_random(model):
        errors.append(
            f"expansion.run=null: model={model} starts from random weights, and there is nothing to keep; name the "
            "folder of a finished run that trained it"
        )
    if cfg["expansion"]["mode"] == "scratch":
        errors.append("expansion.mode=scratch is given what the training of expansion.run took: name a run")
    return errors


def _run_errors(run: Path, cfg: Parts) -> list[str]:
    plain, outcome = read_files(run)
    label = f"expansion.run={run}"
    if outcome["status"] != "finished":
        return [f"{label} has not finished (status {outcome['status']}): continue it first, with resume={run}"]
    operated = [f"{key}={plain[key]['name']}" for key in (*OTHERS, "expansion") if _is_option(plain.get(key))]
    if operated:
        return [f"{label} is of another kind, with {' and '.join(operated)}: take a run that trained the plain model"]
    if not outcome.get("stages"):
        return [f"{label} trained nothing: take a run that trained its model (model.freeze=false)"]
    own = {key: plain.get(key, cfg[key]) for key in ("model", "tokenizer")}
    return [
        f"{label} decides the {key}, which is another there: leave out {key}=... and what is set in it"
        for key, value in own.items()
        if value != cfg[key]
    ]


def _is_option(group: Mapping[str, Any] | None) -> bool:
    return group is not None and is_chosen(group)
