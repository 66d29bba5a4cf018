"""LoRA as folders that plain `peft` loads onto the plain model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data_modules.tensor_files import read_tensors, tensors_sha256
from lightning_modules.surgery.lora import ADAPTER, Placed, inject, lora_parameters
from registries.registry import UserError


def save_lora_folder(model: nn.Module, placed: Placed, folder: Path, base: str | None) -> None:
    """Write the additions as a folder that `peft` loads onto the plain model.

    Where the frozen weights were changed at the start (W to W - BA), the folder holds the difference of what was learnt
    and the start, at twice the rank; so it fits the plain weights W.

    Args:
        base: hub id or folder of the plain model.
    """
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config, tensors = _to_dict(placed.config), dict(lora_parameters(model))
    if placed.start:
        tensors = {name: _with_start(name, tensor, placed.start[name]) for name, tensor in tensors.items()}
        double = 2 ** (0.5 if config["use_rslora"] else 1)  # the scaling is alpha over the rank, or over its root
        config |= {"r": 2 * config["r"], "lora_alpha": double * config["lora_alpha"], "init_lora_weights": True}
        config["rank_pattern"] = {module: 2 * rank for module, rank in config["rank_pattern"].items()}
    config |= {"base_model_name_or_path": base, "inference_mode": True, "eva_config": None, "lora_ga_config": None}
    if config["init_lora_weights"] == "eva":
        config["init_lora_weights"] = True
    named = get_peft_model_state_dict(model, state_dict=tensors, adapter_name=ADAPTER)
    named = {f"base_model.model.{name}": tensor.detach().contiguous() for name, tensor in named.items()}
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt", "sha256": tensors_sha256(named)})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))


def _with_start(name: str, tensor: Tensor, start: Tensor) -> Tensor:
    """[A, A0] and [B, -B0], whose product is BA - B0 A0; a magnitude stays as it is."""
    if ".lora_A." in name:
        return torch.cat([tensor, start], dim=0)
    return torch.cat([tensor, -start], dim=1) if ".lora_B." in name else tensor


def _to_dict(config: Any) -> dict[str, Any]:
    """A PEFT config as what goes into its JSON file."""
    plain = config.to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in plain.items()}


def load_lora_folder(model: nn.Module, folder: Path) -> None:
    """Add what `save_lora_folder` wrote to a plain model, in place.

    Raises:
        UserError: the folder holds no adapter, or it is damaged or of another model.
    """
    from safetensors import SafetensorError

    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} holds no LoRA (no adapter_config.json): the run has not finished")
    try:
        strange = _load_into(model, folder)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} is damaged or of another model: {' '.join(str(error).split())}") from error
    if strange:
        raise UserError(f"{folder} is damaged or of another model, at {strange[0]}")


def _load_into(model: nn.Module, folder: Path) -> list[str]:
    """Add the adapter to the model. Returns the names that only one of them has."""
    from peft import LoraConfig
    from peft.utils import set_peft_model_state_dict

    inject(model, LoraConfig.from_pretrained(str(folder)), ADAPTER)
    tensors = read_tensors(folder / "adapter_model.safetensors")
    tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
    for parameter in lora_parameters(model).values():
        parameter.data = parameter.data.float()  # as it was trained
    result = set_peft_model_state_dict(model, tensors, adapter_name=ADAPTER)
    return [*result.unexpected_keys, *(set(result.missing_keys) & lora_parameters(model).keys())]
