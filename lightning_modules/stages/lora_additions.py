"""LoRA on chosen roles, end to end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Lt, MinLen
from torch import Tensor, nn

from lightning_modules.stages import STAGES
from lightning_modules.stages.stage import Loss, Workspace
from lightning_modules.surgery.lora import inject
from lightning_modules.training.objectives import EndToEnd, Objective
from registries.architectures import architecture_of, modules_of_roles
from registries.layers import resolve_layers

RECOVERY_ADAPTER = "recovery"


@STAGES.register("lora")
@dataclass
class LoRA:
    """Trains low-rank additions (Hu et al., arXiv 2106.09685; PEFT's) to linear layers, and nothing else.

    Args:
        roles: which linear layers: roles such as `attention.value`, or a prefix such as `attention`.
        layers: `replaced`, or a layer spec.
        rank: of the additions.
        alpha: they are scaled by alpha / rank.
        dropout: share of their inputs dropped in training.
        objective: `next_token`, or `kl` to the untouched model.
    """

    workspace: Workspace
    steps: Annotated[int, Ge(1)] | None = None
    lr: Annotated[float, Gt(0)] | None = None
    batch_size: Annotated[int, Ge(1)] | None = None
    roles: Annotated[list[str], MinLen(1)] = field(default_factory=lambda: ["attention"])
    layers: str | int | list[int] = "replaced"
    rank: Annotated[int, Ge(1)] = 8
    alpha: Annotated[float, Gt(0)] = 16.0
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    objective: Objective = "next_token"

    scope: ClassVar[str] = "model"

    @staticmethod
    def imitates(keys: Mapping[str, Any]) -> bool:
        return keys.get("objective") == "kl"

    def prepare(self, model: nn.Module) -> None:
        replaced = self.workspace.surgery.layers if self.workspace.surgery else []
        add_lora(model, replaced, self.roles, self.layers, self.rank, self.alpha, self.dropout)

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in model.named_parameters() if f".{RECOVERY_ADAPTER}." in name}

    def start(self, model: nn.Module) -> None:
        self._objective = EndToEnd(model, self.workspace, self.steps * self.batch_size, self.objective)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Loss:
        return self._objective(model, batch)


def add_lora(
    model: nn.Module,
    replaced: list[int],
    roles: list[str],
    layers: str | int | list[int],
    rank: int,
    alpha: float,
    dropout: float,
    **others: object,
) -> None:
    """Put PEFT's LoRA layers around the linear layers of these roles; the model computes what it did before."""
    from peft import LoraConfig

    chosen = replaced if layers == "replaced" else resolve_layers(layers, model.config.num_hidden_layers)
    targets = modules_of_roles(architecture_of(model.config.model_type), roles, chosen)
    config = LoraConfig(target_modules=targets, r=rank, lora_alpha=alpha, lora_dropout=dropout, bias="none")
    inject(model, config, RECOVERY_ADAPTER)
