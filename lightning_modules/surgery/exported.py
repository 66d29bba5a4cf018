"""Loads what `studies.tools.export` wrote: a Hugging Face folder with surgery."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning_modules.length_guard import guard_length
from lightning_modules.stages.lora_additions import add_lora
from lightning_modules.surgery.replaced_attention import replace_attention
from registries import UserError
from registries.models.pretrained import untie_if_apart
from registries.plugins import import_plugins
from registries.settings import ReplacementSettings

SURGERY_FILE = "surgery.json"


def load_exported(folder: str | Path) -> tuple[Any, Any]:
    """The model of an exported folder, every weight bit for bit and in the dtype it was saved in, and its tokenizer.

    Raises:
        UserError: the folder holds no exported model, not all of its weights, or something is damaged.
    """
    from safetensors import SafetensorError

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no exported model: it has no config.json")
    try:
        return _load(folder)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder} is damaged or of another version: {reason}; export the run anew") from error


def _load(folder: Path) -> tuple[Any, Any]:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=config.dtype or torch.float32)
    if (folder / SURGERY_FILE).is_file():
        _operate(model, json.loads((folder / SURGERY_FILE).read_text()))
    weights = {key: tensor for file in sorted(folder.glob("*.safetensors")) for key, tensor in load_file(file).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    lacking = set(missing)
    model.tie_weights(missing_keys=lacking, recompute_mapping=False)  # only what the files do not hold apart
    untie_if_apart(model)
    if unexpected or lacking:
        name = (*unexpected, *lacking)[0]
        raise UserError(f"{folder} is damaged or of another version: its weights and its surgery differ at {name!r}")
    return guard_length(model).requires_grad_(False).eval(), AutoTokenizer.from_pretrained(folder)


def _operate(model: Any, surgery: dict[str, Any]) -> None:
    import_plugins(surgery["plugins"])
    replacement = surgery["replacement"]
    if replacement["name"] != "none":
        options = ReplacementSettings.read(replacement).arguments
        replace_attention(model, replacement["name"], surgery["layers"], options=options)
    if "lora" in surgery["recovery"]:
        add_lora(model, surgery["layers"], **surgery["recovery"]["lora"])
