"""The config of a study, read once: below this, nothing looks up a key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, MaxLen, MinLen

from data_modules.dataset_settings import DatasetSettings
from data_modules.tokenizer_settings import OWN, TokenizerSettings
from lightning_modules.learning_rate import OptimizerSettings
from lightning_modules.run_files import read_files
from registries.counts import Count
from registries.models.model_folder import absolute_path
from registries.option import Option, base_values, read_section
from registries.registry import UserError
from registries.settings import (
    AdapterSettings,
    CompressorSettings,
    ExpansionSettings,
    ModelSettings,
    PlacementSettings,
    ReplacementSettings,
)

Control = Literal["original", "standard", "scratch"]


@dataclass(frozen=True, kw_only=True)
class EarlyStoppingSettings:
    """Settings of `trainer.early_stopping`."""

    patience: Annotated[int, Ge(1)] | None
    min_delta: Annotated[float, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class TrainerSettings(Option):
    """Settings of the group `trainer`, whose options have no keys of their own."""

    base: ClassVar = "trainer"

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"]
    devices: Annotated[int, Ge(1)]
    precision: Literal["32-true", "bf16-mixed", "16-mixed"]
    max_steps: Annotated[int, Ge(-1)]
    max_epochs: Annotated[int, Ge(1)] | None
    max_tokens: Count | None
    max_flops: Annotated[float, Gt(0)] | None
    find_lr: bool
    find_batch_size: bool
    val_check_interval: Annotated[int, Ge(1)] | None
    accumulate_grad_batches: Annotated[int, Ge(1)]
    gradient_checkpointing: bool
    loss_chunk_size: Annotated[int, Ge(1)] | None
    gradient_clip_val: Annotated[float, Gt(0)] | None
    log_every_n_steps: Annotated[int, Ge(1)]
    enable_progress_bar: bool
    deterministic: bool
    checkpoint_every_n_steps: Annotated[int, Ge(1)]
    profiler: Literal["simple", "advanced"] | None
    detect_anomaly: bool
    benchmark: bool | None
    early_stopping: EarlyStoppingSettings

    @classmethod
    def read(cls, group: Mapping[str, Any]) -> TrainerSettings:
        """The settings that a valid group `trainer` holds."""
        stopping = {**base_values("trainer")["early_stopping"], **(group.get("early_stopping") or {})}
        return super().read({**group, "early_stopping": EarlyStoppingSettings(**stopping)})


@dataclass(frozen=True, kw_only=True)
class TrackingSettings(Option):
    """Settings of the group `tracking`."""

    base: ClassVar = "tracking"

    experiment: Annotated[str, MinLen(1), MaxLen(500)]


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """Settings of `samples`."""

    max_new_tokens: Annotated[int, Ge(0)]
    prompts: list[str] | None


@dataclass(frozen=True, kw_only=True)
class ActivationSettings:
    """Settings of `activations`."""

    cache: bool
    max_gb: Annotated[float, Gt(0)]


@dataclass(frozen=True, kw_only=True)
class CommunicationSettings:
    """Settings of `communication`."""

    questions: Annotated[int, Ge(0)]
    facts: Annotated[int, Ge(1)]
    choices: Annotated[int, Ge(2)]


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The keys at the top of the config."""

    seed: Annotated[int, Ge(0), Le(2**32 - 1)]
    resume: str
    skip_finished: bool
    on_failure: Literal["continue", "stop"]
    max_failures: Annotated[int, Ge(1)] | None
    on_oom: Literal["fail", "halve"]
    preflight: bool
    controls: list[Control] | None
    plugins: list[str] | None
    output_dir: str
    cache_dir: str


@dataclass(frozen=True, kw_only=True)
class Config(RunSettings):
    """Everything that a study is told. A group whose option is `none` is None.

    Attributes:
        recovery: stage -> its keys, in order; empty for what `recovery=none` stands for.
        plain: the same as nested dicts, as it is recorded.
    """

    model: ModelSettings
    source: ModelSettings | None
    replacement: ReplacementSettings | None
    placement: PlacementSettings | None
    adapter: AdapterSettings | None
    compressor: CompressorSettings | None
    expansion: ExpansionSettings | None
    tokenizer: TokenizerSettings
    recovery: Mapping[str, Mapping[str, Any]]
    dataset: DatasetSettings
    optimizer: OptimizerSettings
    trainer: TrainerSettings
    tracking: TrackingSettings | None
    samples: SampleSettings
    activations: ActivationSettings
    communication: CommunicationSettings
    plain: Mapping[str, Any] = field(repr=False)

    @property
    def reads_two_models(self) -> bool:
        """Whether a source model is read."""
        return any(getattr(self, group) is not None for group in TWO_MODEL_MODULES)

    @property
    def expands_run(self) -> bool:
        """Whether the model is the one that another run trained."""
        return self.expansion is not None and self.expansion.run is not None

    def model_loader(self) -> Any:
        """The `ModelLoader` of the model; of an expansion, that of the model that its run trained."""
        loader = self.untrained_loader()
        if not self.expands_run:
            return loader
        from lightning_modules.trained_loader import TrainedLoader

        return TrainedLoader(loader, Path(self.expansion.run))

    def untrained_loader(self) -> Any:
        """The `ModelLoader` of the model as the group `model` says it, whatever a run made of it."""
        return self.model.loader(self.cache_dir, self.tokenizer.num_tokens)

    def tokenizer_of(self, loader: Any) -> Any:
        """The tokenizer of the model that this loader loads: its own, its run's, or one that is trained on the dataset.

        Raises:
            UserError: see `trained_tokenizer`.
        """
        if self.tokenizer.num_tokens is None or self.expands_run:
            return loader.tokenizer()
        from data_modules.trained_tokenizer import trained_tokenizer

        return trained_tokenizer(self.tokenizer, self.dataset, self.cache_dir)

    def source_loader(self) -> Any:
        """The `ModelLoader` of the source model."""
        return self.source.loader(self.cache_dir)

    def activation_cache(self, keep: bool = True) -> Any:
        """The `ActivationCache` of the study; without `keep`, one that computes everything as it is asked for."""
        from data_modules.caches.activation_cache import ActivationCache

        return ActivationCache(self.cache_dir, self.activations.max_gb, keep and self.activations.cache)


OPTIONS = {
    "model": ModelSettings,
    "source": ModelSettings,
    "replacement": ReplacementSettings,
    "placement": PlacementSettings,
    "adapter": AdapterSettings,
    "compressor": CompressorSettings,
    "expansion": ExpansionSettings,
    "tokenizer": TokenizerSettings,
    "dataset": DatasetSettings,
    "optimizer": OptimizerSettings,
    "trainer": TrainerSettings,
    "tracking": TrackingSettings,
}
SECTIONS = {"samples": SampleSettings, "activations": ActivationSettings, "communication": CommunicationSettings}
# Groups that put a source model before the model: what builds the module of both, from (config, the model's module).
TWO_MODEL_MODULES = {
    "adapter": "lightning_modules.two_models.bridge_assembly:bridge_models",
    "compressor": "lightning_modules.soft_tokens.encoder_assembly:build_compression",
}


def read_config(cfg: Any) -> Config:
    """The settings of a valid config: a composed one, or what a run recorded, whose version may have had fewer keys.

    The two models are put in each other's place where `adapter.exchange` says so, the model of a run that is to be
    expanded is filled in, and local paths are made absolute, so that the run can be loaded from anywhere.
    """
    plain = with_absolute_paths(with_model_of_run(exchanged(as_plain(cfg))))
    groups = {key: plain.get(key, {"name": "none"}) for key in OPTIONS}
    groups["tokenizer"] = plain.get("tokenizer", {"name": OWN})
    return Config(
        recovery=plain.get("recovery") or {},
        plain=plain,
        **{key: kind.read(groups[key]) if is_chosen(groups[key]) else None for key, kind in OPTIONS.items()},
        **{key: read_section(kind, plain.get(key, {}), key) for key, kind in SECTIONS.items()},
        **vars(read_section(RunSettings, plain)),
    )


def is_chosen(group: Mapping[str, Any]) -> bool:
    """Whether a group has another option than `none`."""
    return group["name"] != "none"


def as_plain(cfg: Any) -> dict[str, Any]:
    """A config as plain dicts and lists; components never see OmegaConf."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else cfg


def exchanged(plain: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config with the two models in each other's place where `adapter.exchange` says so."""
    if not plain.get("adapter", {}).get("exchange"):
        return plain
    adapter = {**plain["adapter"], "exchange": False}
    return {**plain, "model": plain["source"], "source": plain["model"], "adapter": adapter}


def with_model_of_run(plain: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config with the model and the tokenizer of the run that `expansion.run` names, where it has no model.

    Raises:
        UserError: the folder is no run's.
    """
    run = (plain.get("expansion") or {}).get("run")
    if run is None or is_chosen(plain["model"]):
        return plain
    if not isinstance(run, str):
        raise UserError(f"expansion.run={run!r} is no folder: give that of a finished run")
    of_run, _ = read_files(Path(run).expanduser())
    return {**plain, "model": of_run["model"], "tokenizer": of_run.get("tokenizer", {"name": OWN})}


def with_absolute_paths(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the absolute paths of local models, tokenizers, teachers and runs."""
    absolute = dict(plain)
    if (run := (plain.get("expansion") or {}).get("run")) is not None:
        absolute["expansion"] = {**plain["expansion"], "run": absolute_path(run)}
    for group in {"model", "source"} & plain.keys():
        paths = {key: absolute_path(plain[group][key]) for key in ("path", "tokenizer") if plain[group].get(key)}
        absolute[group] = {**plain[group], **paths}
    if plain.get("recovery"):
        absolute["recovery"] = {name: _with_absolute_teacher(keys) for name, keys in plain["recovery"].items()}
    return absolute


def _with_absolute_teacher(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {**keys, "teacher": absolute_path(keys["teacher"])} if keys.get("teacher") else dict(keys)
