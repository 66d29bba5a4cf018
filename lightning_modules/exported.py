"""Loads what `studies.export` wrote: a Hugging Face folder with surgery."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning_modules.options import split, surgery_options
from lightning_modules.stages.lora import add_lora
from lightning_modules.surgery import replace_attention
from registries import UserError
from registries.plugins import import_plugins

SURGERY_FILE = "surgery.json"


def load_exported(folder: str | Path) -> tuple[Any, Any]:
    """The model of an exported folder, every weight bit for bit and in the dtype it was saved in, and its tokenizer.

    Raises:
        UserError: the folder holds no exported model, or not all of its weights.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no exported model: it has no config.json")
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=config.dtype or torch.float32)
    if (folder / SURGERY_FILE).is_file():
        _operate(model, json.loads((folder / SURGERY_FILE).read_text()))
    weights = {key: tensor for file in sorted(folder.glob("*.safetensors")) for key, tensor in load_file(file).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    tied = set(model.all_tied_weights_keys)
    if unexpected or set(missing) - tied:
        name = (*unexpected, *(set(missing) - tied))[0]
        raise UserError(f"{folder} is damaged or of another version: its weights and its surgery differ at {name!r}")
    return model.requires_grad_(False).eval(), AutoTokenizer.from_pretrained(folder)


def _operate(model: Any, surgery: dict[str, Any]) -> None:
    import_plugins(surgery["plugins"])
    replacement = surgery["replacement"]
    if replacement["name"] != "none":
        options = split(replacement, surgery_options)[1]
        replace_attention(model, replacement["name"], surgery["layers"], options=options)
    if "lora" in surgery["recovery"]:
        add_lora(model, surgery["layers"], **surgery["recovery"]["lora"])
