"""The keys that all components of a group share. Their values, and what they trade, stand in `conf/base`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

from registries import MODELS, PLACEMENTS
from registries.layers import LayerSpec
from registries.option import Option, split_keys
from registries.placements.placement import Init, Variant
from registries.registry import taken

Contrast = Literal["tokens", "sequences"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
ExpansionMode = Literal["finetune", "freeze", "original", "scratch"]
FirstToken = Literal["constant", "translate"]


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Option):
    """Settings of the groups `model` and `model@source`."""

    base: ClassVar = "model"

    dtype: Dtype
    freeze: bool

    def loader(self, cache_dir: str, num_tokens: int | None = None) -> Any:
        """The `ModelLoader` of this model.

        Args:
            num_tokens: of a tokenizer that is trained for it; None: the model has its own.
        """
        supplied = {"cache_dir": cache_dir} | ({} if num_tokens is None else {"num_tokens": num_tokens})
        return MODELS.build(self.name, **self.arguments, **taken(MODELS.get(self.name), **supplied))


@dataclass(frozen=True, kw_only=True)
class ReplacementSettings(Option):
    """Settings of the group `replacement`."""

    base: ClassVar = "replacement"

    layers: LayerSpec
    init: Literal["copy", "random"]
    transfer_steps: Annotated[int, Ge(0)]
    transfer_lr: Annotated[float, Gt(0)]
    transfer_batch_size: Annotated[int, Ge(1)]


@dataclass(frozen=True, kw_only=True)
class PlacementSettings(Option):
    """Settings of the group `placement`."""

    base: ClassVar = "placement"

    alpha: Annotated[float, Gt(0)]
    dropout: Annotated[float, Ge(0), Lt(1)]
    variant: Variant
    init: Init

    def component_arguments(self) -> dict[str, Any]:
        """The arguments of the component, without what is measured; some count the parameters of the variant."""
        return {**self.arguments, **taken(PLACEMENTS.get(self.name), variant=self.variant)}


@dataclass(frozen=True, kw_only=True)
class ExpansionSettings(Option):
    """Settings of the group `expansion`."""

    base: ClassVar = "expansion"

    run: str | None
    mode: ExpansionMode


@dataclass(frozen=True, kw_only=True)
class AdapterTrainingSettings:
    """Settings of the group `adapter`, for adapters that are trained."""

    base: ClassVar = "trained_adapter"

    epochs: Annotated[int, Ge(0)]
    lr: Annotated[float, Gt(0)]
    batch_size: Annotated[int, Ge(1)]
    alignment_weight: Annotated[float, Ge(0)]
    generation_weight: Annotated[float, Ge(0)]
    contrastive_weight: Annotated[float, Ge(0)]
    temperature: Annotated[float, Gt(0)]
    negatives: Annotated[int, Ge(1)]
    contrast: Contrast
    metrics_every: Annotated[int, Ge(1)]


@dataclass(frozen=True, kw_only=True)
class AdapterSettings(Option):
    """Settings of the group `adapter`."""

    base: ClassVar = "adapter"

    layers: LayerSpec
    source_layers: LayerSpec | None
    shared: bool
    first_token: FirstToken
    exchange: bool
    training: AdapterTrainingSettings | None = None

    @classmethod
    def read(cls, group: Mapping[str, Any]) -> AdapterSettings:
        """The settings that a valid group `adapter` holds; those of training for adapters that are trained."""
        from registries.adapters.adapter import is_trained

        shared, own = split_keys(cls, group)
        training = None
        if is_trained(group["name"]):
            keys, own = split_keys(AdapterTrainingSettings, own)
            training = AdapterTrainingSettings(**keys)
        return cls(name=group["name"], arguments=own, training=training, **shared)


@dataclass(frozen=True, kw_only=True)
class CompressorSettings(Option):
    """Settings of the group `compressor`. The component gets `tokens` too."""

    base: ClassVar = "compressor"

    tokens: Annotated[int, Ge(1)]
    context: Annotated[int, Ge(1)]
    source_layer: str | int
    steps: Annotated[int, Ge(0)]
    lr: Annotated[float, Gt(0)]
    batch_size: Annotated[int, Ge(1)]
