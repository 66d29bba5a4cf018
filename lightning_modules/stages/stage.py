"""What a stage of training is, and what the stages of a run share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from data_modules.batches import ModelInput
    from data_modules.caches.activation_cache import ActivationCache
    from lightning_modules.surgery.expanded_model import Expanded
    from lightning_modules.surgery.lora import Placed
    from lightning_modules.surgery.replaced_attention import Surgery


@dataclass(frozen=True)
class Workspace:
    """What the stages of a run share.

    Attributes:
        original: the untouched model, a twin of the one that trains.
        tokenizer: of both.
        surgery: what was done to the model; None: nothing.
        activations: the cache of what frozen layers compute.
        identity: what the activations of the untouched model depend on beside layer and tokens.
        changes: the surgery and the recovery of this run, as plain data, with the version of their code.
        placement: LoRA that was placed in the model; None: none.
        expansion: how the model was made larger; None: it was not.
        train_blocks: (blocks, length) tokens; None where nothing will be trained.
        train_positions: (blocks, length) of the tokens in their examples, where these are kept apart.
        block_size: tokens of a block.
        batch_size: blocks of one forward pass through the whole model.
        loss_chunk_size: tokens whose logits exist at a time in an end-to-end loss; None: those of a whole pass.
        flops: floating-point operations that training the whole model takes for a token.
        earlier_flops: those of an earlier training, which this one is given beside its own budget.
    """

    original: nn.Module
    tokenizer: Any
    surgery: Surgery | None
    activations: ActivationCache
    identity: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    placement: Placed | None = None
    expansion: Expanded | None = None
    train_blocks: Tensor | None = None
    train_positions: Tensor | None = None
    block_size: int = 1
    batch_size: int = 1
    loss_chunk_size: int | None = None
    flops: float | None = None
    earlier_flops: float = 0.0

    def train_rows(self) -> list[ModelInput]:
        """What a model reads of the training blocks, block by block."""
        from data_modules.batches import ModelInput

        return list(ModelInput(self.train_blocks, self.train_positions).rows())


class Loss(NamedTuple):
    """A loss summed over a batch.

    Attributes:
        total: the sum, differentiable.
        count: how many terms (tokens) it sums.
        parts: name -> sum of a part that is worth a curve of its own, over as many terms; detached.
    """

    total: Tensor
    count: int
    parts: Mapping[str, Tensor] = {}


class Stage(Protocol):
    """One stage of training.

    Built with its keys of the config and `workspace`. A key `steps`, `lr` or `batch_size` of None is filled in before.

    Attributes:
        workspace: what it shares with the other stages.
        steps: optimizer steps.
        lr: peak learning rate.
        batch_size: blocks that one step sees.
        scope: `layers` if layers learn by themselves (None means `replacement.transfer_*`), `model` if the loss is of
            the whole model (None means the trainer's steps, the optimizer's rate, the dataset's batches).
    """

    workspace: Workspace
    steps: int
    lr: float
    batch_size: int
    scope: ClassVar[Literal["layers", "model"]]

    @staticmethod
    def imitates(keys: Mapping[str, Any]) -> bool:
        """Whether with these keys the target is what the untouched model computes (which then learns nothing)."""
        ...

    def prepare(self, model: nn.Module) -> None:
        """Put in place what the stage adds to the model. A trained model is loaded after the same preparation."""
        ...

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Full name -> parameter of exactly what this stage trains."""
        ...

    def start(self, model: nn.Module) -> None:
        """Called once before the first step, when the parameters are thawed: reserve room, load a teacher."""
        ...

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Loss:
        """The loss of a batch of `input_ids` (batch, length), with `position_ids` and `labels` of instruction data."""
        ...


def blocks_per_pass(stage: Stage) -> int:
    """Blocks of one forward pass of a stage; a step's gradients are summed over its passes."""
    return stage.batch_size if stage.scope == "layers" else min(stage.batch_size, stage.workspace.batch_size)
