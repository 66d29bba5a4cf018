"""The config outside the components: types, ranges, and one list of everything that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Ge, Gt, Le, MaxLen, MinLen

from registries.registry import is_there, parameters, signature_errors, wrong_arguments


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


COMPONENTS = (  # groups whose `name` tells which of their options was chosen
    "model",
    "source",
    "replacement",
    "placement",
    "dataset",
    "optimizer",
    "trainer",
    "adapter",
    "compressor",
    "tracking",
)
GROUPS = (*COMPONENTS, "recovery", "experiment", "size", "samples", "activations", "communication")


class Check(NamedTuple):
    """One part of the check of a config.

    Attributes:
        concerns: the key that is wrong if anything is found; checks that read it are then left out.
        reads: the keys at the top of the config that are looked at, all of them right. No others are handed over, so
            that jobs of a sweep which agree in these need one check.
        find: config (these keys alone) -> messages.
    """

    concerns: str
    reads: tuple[str, ...]
    find: Callable[[Mapping[str, Any]], list[str]]


Known = dict[tuple[int, str], list[str]]  # (number of a check, what it reads) -> what it found


def config_errors(cfg: Mapping[str, Any], known: Known | None = None) -> list[str]:
    """Everything that is wrong with a composed config (plain dicts), found without reading any weights.

    `known` keeps what was found, for other jobs of a sweep.
    """
    known = {} if known is None else known
    if missing := NEEDED - cfg.keys():
        return [f"the config has no key {key!r}: a primary config must build on ours" for key in sorted(missing)]
    wrong = {key: [_not_keys(key, cfg[key])] for key in GROUPS if key in cfg and not isinstance(cfg[key], Mapping)}
    wrong |= {key: [_unnamed(key)] for key in COMPONENTS if key in cfg and key not in wrong and not _is_named(cfg[key])}
    if not {"adapter", "model", "source"} & wrong.keys():
        cfg = _exchanged(cfg)
    wrong |= _root_errors({key: value for key, value in cfg.items() if key not in GROUPS})
    errors = [message for messages in wrong.values() for message in messages]
    for number, check in enumerate(CHECKS):
        if not wrong.keys().isdisjoint(check.reads):
            continue
        part = {key: cfg[key] for key in check.reads if key in cfg}
        key = (number, repr(part))
        if key not in known:
            known[key] = check.find(part)
        if known[key]:
            wrong.setdefault(check.concerns, [])
            errors += known[key]
    return errors


def _exchanged(cfg: Mapping[str, Any]) -> Mapping[str, Any]:
    """As `options.exchanged`, for a config of which little is known yet."""
    from lightning_modules import options

    return options.exchanged(cfg) if cfg["adapter"].get("exchange") is True else cfg


def _not_keys(key: str, value: Any) -> str:
    return f"{key}={value!r}: {key} is no value but has keys of its own; set {key}.<key>=<value>"


def _is_named(group: Mapping[str, Any]) -> bool:
    return isinstance(group.get("name"), str)


def _unnamed(key: str) -> str:
    return f"{key} has no name: choose one of its options, {key}=<option>"


def _root_errors(root: Mapping[str, Any]) -> dict[str, list[str]]:
    """Key at the top of the config -> what is wrong with it. Sections of somebody's own, for interpolation, are not."""
    score = {key: value for key, value in root.items() if key in parameters(score_options)}
    known = parameters(root_options)
    top = {
        key: value
        for key, value in root.items()
        if key not in score and (key in known or not isinstance(value, Mapping))
    }
    wrong = wrong_arguments(root_options, top, "the config") | wrong_arguments(score_options, score, "score")
    for key in ("output_dir", "cache_dir", "run"):
        if key not in wrong and root.get(key) == "":
            wrong[key] = [f"{key} is empty: give it a folder, or leave it out"]
    folder = root.get("task_path")
    if "task_path" not in wrong and folder and not is_there(folder, folder=True):
        wrong["task_path"] = [f"task_path={folder!r} is no folder (looked from {Path.cwd()})"]
    return wrong


def _section(options: Callable[..., None], key: str) -> Check:
    return Check(key, (key,), lambda cfg: signature_errors(options, dict(cfg[key]), key))


def _question_errors(cfg: Mapping[str, Any]) -> list[str]:
    if cfg["communication"].get("questions") and cfg["adapter"]["name"] == "none":
        return ["communication.questions are for two models: choose an adapter (adapter=ridge)"]
    return []


def _model_errors(cfg: Mapping[str, Any]) -> list[str]:
    from lightning_modules.options import check_model

    if cfg["model"]["name"] == "none":
        return ["model=none: a study needs a model; only the second one (model@source) may be none"]
    return check_model(cfg)


def _dataset_errors(cfg: Mapping[str, Any]) -> list[str]:
    import data_modules

    return data_modules.dataset_errors(cfg["dataset"])


def _option_check(name: str) -> Callable[[Mapping[str, Any]], list[str]]:
    """A check of `lightning_modules.options`, which is imported when it is needed."""

    def find(cfg: Mapping[str, Any]) -> list[str]:
        from lightning_modules import options

        return getattr(options, name)(cfg)

    return find


def _recovery_errors(cfg: Mapping[str, Any]) -> list[str]:
    from lightning_modules.training.stage_plan import check_recovery

    keyless = [name for name, keys in cfg["recovery"].items() if not isinstance(keys, Mapping)]
    return [_not_keys(f"recovery.{name}", cfg["recovery"][name]) for name in keyless] or check_recovery(cfg)


def _scoring_errors(cfg: Mapping[str, Any]) -> list[str]:
    if "split" in cfg and cfg["trainer"]["devices"] > 1:
        return [f"trainer.devices={cfg['trainer']['devices']}: scoring computes on one; leave it out"]
    return []


def _control_errors(cfg: Mapping[str, Any]) -> list[str]:
    if cfg["controls"] and cfg["replacement"]["name"] == "none":
        return [f"controls={cfg['controls']}: there is nothing to compare, as no layer is replaced"]
    return []


def _tracking_errors(cfg: Mapping[str, Any]) -> list[str]:
    from studies.run.store import address_errors

    tracking = cfg["tracking"]
    keys = {key: value for key, value in tracking.items() if key != "name"}
    if tracking.get("name") == "none":
        return [f"tracking=none has no key {key!r}: choose tracking=mlflow or tracking=server" for key in keys]
    if tracking.get("name") not in ("mlflow", "server"):
        return [f"tracking.name={tracking.get('name')!r} is no option: choose tracking=mlflow, server or none"]
    missing = [f"tracking needs a value for {key!r}" for key in parameters(tracking_options) if key not in keys]
    errors = missing + signature_errors(tracking_options, keys, "tracking")
    return errors or address_errors(keys["uri"])


def _trainer_errors(cfg: Mapping[str, Any]) -> list[str]:
    trainer = cfg["trainer"]
    keys = {key: value for key, value in trainer.items() if key != "name"}
    wrong = wrong_arguments(trainer_options, keys, "trainer")
    stopping = dict(keys.get("early_stopping") or {}) if "early_stopping" not in wrong else {}
    wrong |= {
        f"early_stopping.{key}": messages
        for key, messages in wrong_arguments(early_stopping_options, stopping, "trainer.early_stopping").items()
    }
    errors = [message for messages in wrong.values() for message in messages]
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
    from lightning_modules.training.stage_plan import step_sizes

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


_OPERATED = ("model", "replacement", "placement", "recovery", "dataset", "optimizer", "trainer", "cache_dir")
CHECKS = (
    _section(sample_options, "samples"),
    _section(activation_options, "activations"),
    _section(communication_options, "communication"),
    Check("communication", ("communication", "adapter"), _question_errors),
    Check("tracking", ("tracking",), _tracking_errors),
    Check("trainer", ("trainer",), _trainer_errors),
    Check("dataset", ("dataset",), _dataset_errors),
    Check("optimizer", ("optimizer",), _option_check("check_optimizer")),
    Check("model", ("model", "cache_dir"), _model_errors),
    Check("replacement", ("replacement", "model", "cache_dir"), _option_check("check_replacement")),
    Check("placement", ("placement", "model", "cache_dir"), _option_check("check_placement")),
    Check(
        "adapter",
        ("adapter", "source", "model", "compressor", "trainer", "cache_dir"),
        _option_check("check_adapter"),
    ),
    Check(
        "compressor",
        ("compressor", "source", "adapter", "dataset", "cache_dir"),
        _option_check("check_compressor"),
    ),
    Check("recovery", _OPERATED, _recovery_errors),
    Check("devices", (*_OPERATED, "adapter", "compressor"), _device_errors),
    Check("trainer", ("trainer", "split"), _scoring_errors),
    Check("controls", ("controls", "replacement"), _control_errors),
    Check("dataset", ("dataset", "model", "cache_dir"), _option_check("check_block_size")),
)
NEEDED = {key for check in CHECKS for key in check.reads} - {"split"}  # that only score.py has
