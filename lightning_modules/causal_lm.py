"""The LightningModule of every study on one language model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn

from data_modules.batches import ModelInput, passes_of, positions_of, scored_labels, scored_tokens
from data_modules.encoding import StartToken, start_token
from lightning_modules.learning_rate import OptimizerSettings, scaled_lr, schedule_factor
from lightning_modules.metrics import DocumentNLL, TokenNLL
from lightning_modules.nll import IGNORED, token_nll
from lightning_modules.optimizers import OPTIMIZERS
from lightning_modules.samples import continue_texts
from lightning_modules.stages.stage import Stage, blocks_per_pass
from lightning_modules.surgery.expanded_model import Expanded
from lightning_modules.surgery.frozen_numbers import FrozenNumbers
from lightning_modules.surgery.lora import Placed, train_dropouts
from lightning_modules.surgery.replaced_attention import Surgery
from lightning_modules.surgery.trained_parameters import set_modes, thaw
from lightning_modules.surgery.twins import separate, twin
from registries import UserError
from registries.architectures import architecture_of
from registries.registry import taken


class NonFiniteLoss(Exception):
    """The loss became NaN or infinite."""


class CausalLMModule(LightningModule):
    """A causal language model with its tokenizer: scores it, and trains it stage by stage.

    One Lightning batch is one optimizer step: `training_step` cuts it into passes and sums their gradients, weighted
    by tokens. So a checkpoint can never fall between accumulated gradients. Of several processes, each has the whole
    batch and takes its share of the blocks.

    Args:
        model: a transformers causal LM, before any surgery; `.original` stays as it is now.
        tokenizer: its tokenizer.
        optimizer: of what is trained; None where nothing is.
        gradient_clip_val: largest norm of the gradients of a step; None does not clip.
        gradient_checkpointing: keep only each layer's input for the backward pass and compute the rest again.
        start_token: what stands before every text, see `data_modules.encoding.start_token`.
        seed: of the run; the randomness of a step (dropout) follows from it, the stage and the step.
        original: the untouched model; None: the model as it is now.
        surgery, placement: what was done to the model already.
        token_bytes, position_groups, unknown: what is measured, see `measure`.

    Attributes:
        surgery: what was done to the model's attention, if anything was.
        placement: LoRA that was placed, if any was.
        expansion: how the model was made larger, if it was.
        reads_two_models: whether the model reads what a source model makes of the text.
    """

    reads_two_models = False

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        optimizer: OptimizerSettings | None = None,
        gradient_clip_val: float | None = None,
        gradient_checkpointing: bool = False,
        start_token: StartToken = "auto",
        seed: int = 0,
        original: nn.Module | None = None,
        surgery: Surgery | None = None,
        placement: Placed | None = None,
        token_bytes: Tensor | None = None,
        position_groups: Mapping[str, slice] | None = None,
        unknown: int | None = None,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # a checkpoint holds only what trained
        self.model, self.tokenizer, self.start_token = model, tokenizer, start_token
        self.original = twin(model) if original is None else original
        self.surgery, self.placement = surgery, placement
        self.optimizer_settings = optimizer
        self.gradient_clip_val, self.gradient_checkpointing, self.seed = gradient_clip_val, gradient_checkpointing, seed
        self.expansion: Expanded | None = None
        self.stage: Stage | None = None
        self.stage_name = ""
        self.measure(token_bytes, position_groups, unknown)

    def measure(
        self,
        token_bytes: Tensor | None = None,
        position_groups: Mapping[str, slice] | None = None,
        unknown: int | None = None,
    ) -> None:
        """Set what is measured beside loss, perplexity and accuracy.

        Args:
            token_bytes: (vocabulary,) UTF-8 bytes of each token, for bits per byte.
            position_groups: name -> slice of target positions whose loss is reported apart.
            unknown: the token that stands for unknown words, whose share is reported then.
        """
        self.token_bytes, self.position_groups, self.unknown = token_bytes, dict(position_groups or {}), unknown
        self.scores = nn.ModuleDict({name: TokenNLL(token_bytes, unknown) for name in ("all", *self.position_groups)})
        self.documents = DocumentNLL()

    def construction(self) -> dict[str, Any]:
        """The arguments that make another module of the same model, with what was done to it."""
        return {
            "model": self.model,
            "tokenizer": self.tokenizer,
            "optimizer": self.optimizer_settings,
            "gradient_clip_val": self.gradient_clip_val,
            "gradient_checkpointing": self.gradient_checkpointing,
            "start_token": self.start_token,
            "seed": self.seed,
            "original": self.original,
            "surgery": self.surgery,
            "placement": self.placement,
            "token_bytes": self.token_bytes,
            "position_groups": self.position_groups,
            "unknown": self.unknown,
        }

    def require_data(self, data: Any) -> None:
        """Raise UserError unless the module can be scored on these data."""

    def require_one_model(self, what: str) -> None:
        """Raise UserError for a module of two models."""
        if self.reads_two_models:
            raise UserError(f"{what} is of one model, and this run has two (the source would be left out)")

    @cached_property
    def start(self) -> int | None:
        """The token that the model is given before every text; None: none."""
        return start_token(self.tokenizer, self.start_token)

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        """The language model's own forward pass."""
        return self.model(input_ids=input_ids, **kwargs)

    def continue_texts(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """What the model writes after each prompt, by greedy decoding."""
        return continue_texts(self.model, self.tokenizer, prompts, max_new_tokens, self.start)

    # Training

    def begin(self, name: str, stage: Stage) -> None:
        """Make `stage` what the next `fit` does: what it adds is put in place, exactly its parameters are thawed.

        Raises:
            UserError: the stage has nothing to train.
        """
        torch.manual_seed(_step_seed(self.seed, name, -1))
        stage.prepare(self.model)
        trained = stage.parameters(self.model)
        if not trained:
            raise UserError(f"stage {name!r} has nothing to train: no layer is replaced and model.freeze is true")
        self.stage, self.stage_name = stage, name
        separate(self.original, trained.values())
        thaw(self.model, trained)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Name (within `.model`) -> parameter of what is thawed."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def configure_optimizers(self) -> dict[str, Any]:
        settings, stage = self.optimizer_settings, self.stage
        lr = scaled_lr(stage.lr, settings.scale_lr, stage.batch_size, settings.base_batch_size)
        supplied = {"lr": lr, "parameters": list(self.trained_parameters().values())}
        tokens_per_step = stage.batch_size * stage.workspace.block_size
        supplied |= taken(OPTIMIZERS.get(settings.name), tokens_per_step=tokens_per_step)
        optimizer = OPTIMIZERS.build(settings.name, **settings.arguments | supplied)
        warmup = max(1, stage.steps // 20) if settings.warmup_steps is None else settings.warmup_steps
        factor = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: schedule_factor(step, stage.steps, settings.schedule, warmup)
        )
        return {"optimizer": optimizer, "lr_scheduler": factor}

    def on_train_start(self) -> None:
        set_modes(self.model)
        train_dropouts(self.model)
        self.original.eval()
        if self.gradient_checkpointing:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
            for block in self.model.get_submodule(architecture_of(self.model.config.model_type).blocks):
                block.training = True  # or it does not checkpoint; its parts stay in the mode they are in
        frozen, trained = self.expansion.frozen if self.expansion else {}, self.trained_parameters()
        self._frozen = FrozenNumbers({trained[name]: mask for name, mask in frozen.items() if name in trained})
        self.stage.start(self.model)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        rank, processes = self.global_rank, self.trainer.world_size
        torch.manual_seed(_step_seed(self.seed, self.stage_name, self.global_step) + rank)
        share = {key: tensor[rank::processes] for key, tensor in batch.items()}
        optimizer, passes = self.optimizers(), passes_of(share, blocks_per_pass(self.stage))
        of_step = max(1, scored_tokens(batch))
        sums = Counter(loss=torch.zeros((), device=self.device), terms=torch.zeros((), device=self.device))
        optimizer.zero_grad()
        for microbatch in passes:
            with self._gradients_stay() if microbatch is not passes[-1] else nullcontext():
                loss, count, parts = self.stage.loss(self.model, microbatch)
                # Weighted by its share of the step's scored tokens, not as one of several equal passes; of the
                # processes, whose gradients are averaged, each gives its share too.
                self.manual_backward(loss / max(1, count) * (scored_tokens(microbatch) * processes / of_step))
            sums.update({"loss": loss.detach(), "terms": count, **parts})
        if processes > 1:
            sums = {name: self.trainer.strategy.reduce(value, reduce_op="sum") for name, value in sums.items()}
        terms = max(1, sums.pop("terms"))
        means = {name: value / terms for name, value in sums.items()}
        mean = means["loss"]
        if not torch.isfinite(mean):
            raise NonFiniteLoss(f"the loss of stage {self.stage_name!r} is {mean.item()} at step {self.global_step}")
        lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        self._frozen.put_back()
        self.lr_schedulers().step()
        prefix = "train" if self.stage_name == "next_token" else f"train/{self.stage_name}"
        self.log(f"{prefix}/loss", mean, prog_bar=True)
        self.log(f"{prefix}/lr", lr)
        self.log_dict({f"{prefix}/{part}": value for part, value in means.items() if part != "loss"})
        return mean

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Here the gradients are no longer scaled, where the precision (16-mixed) has a loss scaler."""
        self._frozen.clear_gradients()
        if self.gradient_clip_val:
            self.clip_gradients(optimizer, self.gradient_clip_val, "norm")

    def _gradients_stay(self) -> AbstractContextManager:
        """Within this context, a backward pass does not exchange gradients with other processes."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if self.trainer.world_size > 1 else nullcontext()

    # Scoring: validation during training, baseline, swap and final scores all run through this.

    def on_validation_epoch_start(self) -> None:
        for score in (*self.scores.values(), self.documents):
            score.reset()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.score_documents(self.score(self.logits(batch), batch), batch)

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """(batch, length, vocabulary) for a batch."""
        inputs, mask = ModelInput.of(batch).arguments, batch.get("attention_mask")
        if mask is not None:
            inputs = {"position_ids": positions_of(mask), **inputs, "attention_mask": mask}
        return self.model(**inputs, use_cache=False).logits

    def score(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Add a batch's logits to the scores. Returns what `token_nll` gives for them."""
        labels = scored_labels(batch)
        nll = token_nll(logits, labels)
        self.scores["all"].update(logits, labels, nll)
        positions = batch.get("position_ids", torch.arange(labels.shape[1], device=labels.device).expand_as(labels))
        for name, targets in self.position_groups.items():
            start, stop, _ = targets.indices(2**31)  # target i is token i + 1
            inside = (positions > start) & (positions <= stop)
            self.scores[name].update(logits, labels.masked_fill(~inside, IGNORED))
        return nll

    def score_documents(self, nll: Tensor, batch: dict[str, Tensor]) -> None:
        """Add a batch's losses, (batch, length - 1), to the scores by document."""
        if "documents" in batch:
            self.documents.update(nll, scored_labels(batch), batch["documents"])

    def on_validation_epoch_end(self) -> None:
        values = {f"val/{key}": value for key, value in self.scores["all"].compute().items()}
        for name in self.position_groups:
            if self.scores[name].tokens:  # short examples have no late positions
                values[f"val/loss_{name}"] = self.scores[name].compute()["loss"]
        self.log_dict({key: torch.tensor(value, dtype=torch.float64) for key, value in values.items()})

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {f"model.{name}": p.detach() for name, p in self.trained_parameters().items()}
        checkpoint["stage"] = self.stage_name

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        expected = {f"model.{name}" for name in self.trained_parameters()}
        if checkpoint.get("stage") != self.stage_name or set(checkpoint["state_dict"]) != expected:
            raise UserError(
                f"the checkpoint is of another config: stage {checkpoint.get('stage')!r} with "
                f"{len(checkpoint['state_dict'])} trained tensors, but this run is in stage {self.stage_name!r} with "
                f"{len(expected)}. Resume with the config of that run, or start anew with resume=never"
            )


def _step_seed(seed: int, stage: str, step: int) -> int:
    """A seed for one step, so that what happened in between (validation, samples, a resume) changes nothing."""
    import zlib

    return zlib.crc32(f"{seed}/{stage}/{step}".encode())
