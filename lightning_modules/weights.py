"""The weights that a run saves, and how they are read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_modules.tensor_files import read_tensors
from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.surgery.twins import separate
from registries import UserError

TRAINED_WEIGHTS = Path("checkpoints") / "trained.safetensors"
BRIDGE_WEIGHTS = Path("checkpoints") / "bridges.safetensors"
LORA_FOLDER = "adapter"
TOKENIZER_FOLDER = "tokenizer"  # of a run that trained its own


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """What a run saved of what it trained.

    Raises:
        UserError: the run has not finished, or the file is damaged.
    """
    if not file.is_file():
        raise UserError(f"{file.parent.parent} has no trained weights ({file.name}): the run has not finished")
    return read_tensors(file)


def restore(module: CausalLMModule, file: Path) -> None:
    """Put the trained weights of a safetensors file into a model that had the same surgery; fp32 stays fp32.

    Raises:
        UserError: as `read_weights`, or the file is of another config.
    """
    fitting = fitting_weights(module.model, file)
    separate(module.original, [parameter for parameter, _ in fitting])
    for parameter, tensor in fitting:
        parameter.data = tensor.to(parameter.device)


def fitting_weights(model: nn.Module, file: Path) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """The parameters of a model that a file holds weights of, each with these.

    Raises:
        UserError: as `read_weights`, or the file is of another config.
    """
    trained, parameters = read_weights(file), dict(model.named_parameters())
    strange = [
        name for name, tensor in trained.items() if parameters.get(name, tensor.new_empty(0)).shape != tensor.shape
    ]
    if strange:
        raise UserError(f"{file} is of another config: {strange[0]!r} does not fit this model")
    return [(parameters[name], tensor) for name, tensor in trained.items()]


def saved_tokenizer(run_dir: Path) -> Any | None:
    """The tokenizer that a run trained; None where its model had one.

    Raises:
        UserError: the files are damaged.
    """
    from transformers import PreTrainedTokenizerFast

    folder = run_dir / TOKENIZER_FOLDER
    if not folder.is_dir():
        return None
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises plain ones
        raise UserError(f"{folder} is damaged: {error}; run the study again") from error


def load_into(part: nn.Module, file: Path) -> None:
    """Load what a run saved of what lies between two models.

    Raises:
        UserError: as `read_weights`, or the file is of another config.
    """
    weights = read_weights(file)
    try:
        part.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{file} is of another config ({error}); run the study again") from error
