"""The model whose next-token distributions another one learns to give."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from data_modules.batches import ModelInput
from data_modules.caches.activation_cache import state_key
from lightning_modules.hidden_states.frozen_states import model_identity
from lightning_modules.length_guard import guard_length
from lightning_modules.output_head import final_states
from lightning_modules.stages.stage import Workspace
from registries import UserError
from registries.models.pretrained import PretrainedModel

FINAL = "final hidden states"


class Teacher:
    """The untouched model, or another one with the same vocabulary. Its final hidden states are cached.

    Args:
        workspace: of the run.
        path: folder or hub id of another model; None: the untouched model.

    Raises:
        UserError: the vocabularies differ.
    """

    def __init__(self, workspace: Workspace, path: str | None = None):
        self.cache, self.model, identity = workspace.activations, workspace.original, dict(workspace.identity)
        if path is not None:
            self.model = _load(path, workspace)
            identity |= model_identity(self.model)
        self.key = state_key(**identity, module=FINAL, side="output")
        self.width = self.model.config.get_text_config().hidden_size

    def reserve(self, rows: Sequence[ModelInput], visits: int) -> bool:
        """Make room in the cache for that many visits of rows. Returns whether they will be kept."""
        entry_bytes = max((row.tokens.shape[1] for row in rows), default=0) * self.width * self.model.dtype.itemsize
        return self.cache.reserve([self.key], rows, min(len(rows), visits), entry_bytes)

    @torch.no_grad()
    def final_states(self, inputs: ModelInput) -> Tensor:
        """Hidden states that go into the teacher's output head, (batch, length, its width)."""
        compute = lambda row: {self.key: final_states(self.model, row)}  # noqa: E731
        return self.cache.fetch([self.key], inputs, compute)[self.key]


def _load(path: str, workspace: Workspace) -> nn.Module:
    from lightning_modules.preflight import require_own_logits  # which needs what is defined here

    source, tokenizer = PretrainedModel(path), workspace.tokenizer
    teacher_tokenizer = source.tokenizer()
    model = guard_length(source.model(workspace.original.dtype)).requires_grad_(False).eval()
    outputs = [len(language_model.get_output_embeddings().weight) for language_model in (model, workspace.original)]
    if outputs[0] != outputs[1]:
        raise UserError(
            f"the teacher {path} has {outputs[0]} outputs, the model that trains has {outputs[1]}: their next-token "
            "distributions cannot be compared. Take a teacher of the same family"
        )
    if teacher_tokenizer.get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"the teacher {path} has another vocabulary ({len(teacher_tokenizer)} tokens) than the model that trains "
            f"({len(tokenizer)}): their next-token distributions cannot be compared. Take a teacher with the same "
            "tokenizer"
        )
    require_own_logits(model)
    return model.to(workspace.original.device)
