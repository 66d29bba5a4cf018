"""The config outside the components: types, ranges, and one list of everything that is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, MaxLen, MinLen

from registries.registry import parameters, signature_errors


def root_options(
    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = 0,
    resume: str = "never",
    skip_finished: bool = False,
    on_failure: Literal["continue", "stop"] = "continue",
    preflight: bool = True,
    controls: list[Literal["original", "standard"]] | None = None,
    plugins: list[str] | None = None,
    output_dir: str = "outputs",
    cache_dir: str = "~/.cache/graftlab",
) -> None:
    """The keys at the top of the config."""


def score_options(
    run: str | None = None,
    split: Literal["validation", "test", "all"] = "validation",
    prompt: str | None = None,
    tasks: list[str] | None = None,
    task_path: str | None = None,
    limit: Annotated[int, Ge(1)] | None = None,
    num_fewshot: Annotated[int, Ge(0)] | None = None,
) -> None:
    """The keys that only score.py has."""


def sample_options(max_new_tokens: Annotated[int, Ge(0)] = 32, prompts: list[str] | None = None) -> None:
    """The keys of `samples`."""


def activation_options(cache: bool = True, max_gb: Annotated[float, Gt(0)] = 20.0) -> None:
    """The keys of `activations`."""


def communication_options(
    questions: Annotated[int, Ge(0)] = 0, facts: Annotated[int, Ge(1)] = 1, choices: Annotated[int, Ge(2)] = 4
) -> None:
    """The keys of `communication`."""


def trainer_options(
    accelerator: str = "auto",
    devices: Annotated[int, Ge(1)] = 1,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    max_steps: Annotated[int, Ge(-1)] = 20,
    max_epochs: Annotated[int, Ge(1)] | None = None,
    val_check_interval: Annotated[int, Ge(1)] | None = 250,
    accumulate_grad_batches: Annotated[int, Ge(1)] = 1,
    gradient_checkpointing: bool = False,
    loss_chunk_size: Annotated[int, Ge(1)] | None = None,
    gradient_clip_val: Annotated[float, Gt(0)] | None = 1.0,
    log_every_n_steps: Annotated[int, Ge(1)] = 10,
    enable_progress_bar: bool = True,
    deterministic: bool = True,
    checkpoint_every_n_steps: Annotated[int, Ge(1)] = 50,
    profiler: Literal["simple", "advanced"] | None = None,
    detect_anomaly: bool = False,
    benchmark: bool | None = None,
    early_stopping: dict[str, Any] | None = None,
) -> None:
    """The keys of `trainer`."""


def early_stopping_options(
    patience: Annotated[int, Ge(1)] | None = None, min_delta: Annotated[float, Ge(0)] = 0.0
) -> None:
    """The keys of `trainer.early_stopping`."""


def tracking_options(
    uri: Annotated[str, MinLen(1)] = "sqlite:///outputs/mlflow.db",
    experiment: Annotated[str, MinLen(1), MaxLen(500)] = "graftlab",
) -> None:
    """The keys of `tracking`, where it is not `none`."""


def config_errors(cfg: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with a composed config (plain dicts), found without reading any weights."""
    import data_modules
    from lightning_modules import options
    from lightning_modules.recovery import check_recovery

    cfg = options.exchanged(cfg)
    groups = {key: value for key, value in cfg.items() if isinstance(value, Mapping)}
    top = {key: value for key, value in cfg.items() if key not in groups}
    score = {key: top.pop(key) for key in parameters(score_options) if key in top}
    errors = signature_errors(root_options, top, "the config") + signature_errors(score_options, score, "score")
    if score.get("task_path") and not Path(score["task_path"]).expanduser().is_dir():
        errors.append(f"task_path={score['task_path']!r} is no folder (looked from {Path.cwd()})")
    errors += signature_errors(sample_options, dict(cfg["samples"]), "samples")
    errors += signature_errors(activation_options, dict(cfg["activations"]), "activations")
    errors += signature_errors(communication_options, dict(cfg["communication"]), "communication")
    if cfg["communication"].get("questions") and cfg["adapter"]["name"] == "none":
        errors.append("communication.questions are for two models: choose an adapter (adapter=ridge)")
    errors += _tracking_errors(cfg["tracking"])
    errors += (trainer_errors := _trainer_errors(cfg["trainer"]))
    model_errors = options.check_model(cfg)
    if cfg["model"]["name"] == "none":
        model_errors.append("model=none: a study needs a model; only the second one (model@source) may be none")
    operations = (options.check_replacement, options.check_placement, options.check_adapter, options.check_compressor)
    surgery_errors = model_errors or [error for check in operations for error in check(cfg)]
    errors += surgery_errors
    dataset_errors = data_modules.check(cfg["dataset"])
    errors += options.check_optimizer(cfg) + dataset_errors
    if not surgery_errors + trainer_errors + dataset_errors:
        errors += check_recovery(cfg)
    if not errors:
        errors += _device_errors(cfg)
    if score and cfg["trainer"]["devices"] > 1:
        errors.append(f"trainer.devices={cfg['trainer']['devices']}: scoring computes on one; leave it out")
    if cfg["controls"] and cfg["replacement"]["name"] == "none":
        errors.append(f"controls={cfg['controls']}: there is nothing to compare, as no layer is replaced")
    return errors + (options.check_block_size(cfg) if not model_errors + dataset_errors else [])


def _tracking_errors(tracking: Mapping[str, Any]) -> list[str]:
    from studies.store import address_errors

    keys = {key: value for key, value in tracking.items() if key != "name"}
    if tracking.get("name") == "none":
        return [f"tracking=none has no key {key!r}: choose tracking=mlflow or tracking=server" for key in keys]
    if tracking.get("name") not in ("mlflow", "server"):
        return [f"tracking.name={tracking.get('name')!r} is no option: choose tracking=mlflow, server or none"]
    missing = [f"tracking needs a value for {key!r}" for key in parameters(tracking_options) if key not in keys]
    errors = missing + signature_errors(tracking_options, keys, "tracking")
    return errors or address_errors(keys["uri"])


def _trainer_errors(trainer: Mapping[str, Any]) -> list[str]:
    keys = {key: value for key, value in trainer.items() if key != "name"}
    errors = signature_errors(trainer_options, keys, "trainer")
    stopping = dict(keys.get("early_stopping") or {})
    errors += signature_errors(early_stopping_options, stopping, "trainer.early_stopping")
    if stopping.get("patience") and keys.get("val_check_interval") is None:
        errors.append("trainer.early_stopping.patience counts validations: set trainer.val_check_interval")
    if keys.get("accelerator") in ("gpu", "cuda") and not _has_gpu():
        errors.append(
            f"trainer.accelerator={keys['accelerator']}: there is no GPU here. Use trainer=auto or trainer=cpu"
        )
    if keys.get("max_steps") == -1 and keys.get("max_epochs") is None:
        errors.append(
            "trainer.max_steps=-1 leaves training without an end: set trainer.max_epochs or trainer.max_steps"
        )
    return errors


def _device_errors(cfg: Mapping[str, Any]) -> list[str]:
    """Steps with fewer blocks than there are devices to share them, in a config that is right."""
    from lightning_modules.recovery import step_sizes

    devices, sizes = cfg["trainer"]["devices"], step_sizes(cfg)
    sizes |= {f"{group}.batch_size": cfg[group].get("batch_size", devices) for group in ("adapter", "compressor")}
    return [
        f"trainer.devices={devices}: each takes one block of a step at least, but {key}={size}; raise it"
        for key, size in sizes.items()
        if size < devices
    ]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()
