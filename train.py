"""One study: python train.py replacement=toroidal replacement.depth=4. A sweep of it: python train.py -m ..."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def compose(overrides: Sequence[str] = ()) -> Any:
    """The checked config (a DictConfig) that these overrides make. Raises UserError with everything wrong with it."""
    from studies.config.compose import compose

    return compose(overrides)


def run(cfg: Any, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run the study of a composed config, after its controls. Returns the content of its `result.json`.

    Args:
        overrides: what was typed for it, which is recorded with the run and names it.

    Raises:
        UserError: there are not as many processes as devices.
    """
    from lightning_modules.config import read_config
    from lightning_modules.processes import require_processes
    from registries.plugins import import_plugins
    from studies.controls import control_config
    from studies.progress import only_results_on_stdout, show_folder
    from studies.run.jobs import note_job

    cfg = read_config(cfg)
    require_processes(cfg.trainer.devices)
    import_plugins(cfg.plugins or [])  # a parallel launcher runs jobs in processes of their own
    with only_results_on_stdout():
        controls = {name: _run_study(control_config(cfg, name)) for name in cfg.controls or []}
        folder = _run_study(cfg, overrides, controls, note_job)
    show_folder(folder.path)
    return folder.result


def _run_study(
    cfg: Any, overrides: Sequence[str] = (), controls: Mapping[str, Any] | None = None, opened: Any = None
) -> Any:
    """Run one study, or find it done, and compare it with its controls (name -> folder). Returns its folder.

    `opened` is told the path of the folder before anything is run.
    """
    from dataclasses import replace

    from lightning import seed_everything

    from data_modules import build_data_module
    from lightning_modules.processes import from_first, is_first
    from studies.config.groups import recipe
    from studies.controls import record_ratios
    from studies.progress import say
    from studies.report.display import show_scores
    from studies.run.lifecycle import open_run, recording
    from studies.study import Study

    seed_everything(cfg.seed, workers=True, verbose=False)
    loader = cfg.model_loader()
    tokenizer = cfg.tokenizer_of(loader)
    data = build_data_module(cfg.plain, tokenizer)
    folder = from_first(lambda: open_run(cfg, data.describe(), overrides))
    if opened is not None and is_first():
        opened(folder.path)
    if folder.result["status"] in ("finished", "skipped"):
        say(f"{folder.path.name} has finished before")
        return folder
    if not is_first():
        folder, cfg = folder.copied(), replace(cfg, tracking=None)
    with recording(folder, cfg) as record:
        recipe(cfg)(Study(cfg, loader, tokenizer, data, record))
        record_ratios(record, controls or {})
        show_scores(folder.result)
    return folder


def job(cfg: Any) -> float:
    """One job as Hydra starts it. Returns the validation loss, for sweepers that optimise."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from lightning_modules.stopping import stop_if_requested
    from registries import UserError
    from studies.config.launch import exit_with
    from studies.memory_retry import run_with_retries
    from studies.progress import say
    from studies.sweep import run_in_sweep

    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return run_in_sweep(cfg, run)
    try:
        result = run_with_retries(cfg, HydraConfig.get().overrides.task, run, say)
        return result["metrics"].get("val/loss", float("inf"))
    except Exception as error:
        stop_if_requested()  # a library may have made this error of the signal
        if isinstance(error, UserError):
            exit_with(error)
        raise


if __name__ == "__main__":
    from studies.config.launch import launch

    launch(job, "config")
