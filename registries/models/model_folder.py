"""What is wrong with a path to a model, and with the folder and the config that lie there."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from registries.registry import is_there

# What computes attention, beside what transformers brings itself -> the package that it needs.
_ATTENTION_PACKAGES = {
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
    "flash_attention_4": "flash_attn.cute",
}
_ATTENTION = ("eager", "sdpa", "flex_attention", *_ATTENTION_PACKAGES)


def path_errors(path: str | None, key: str = "model.path") -> list[str]:
    """What is wrong with the model that a key of the config names.

    A local folder may be no model's, have no weights in it, or a config that cannot be followed.
    """
    if path is None:
        return []
    if not is_local(path):
        return _name_errors(path, key)
    if not is_there(path, folder=True):
        return [f"{key}={path}: there is no such folder"]
    return [f"{key}={path}: {reason}" for reason in folder_errors(Path(path).expanduser())]


def folder_errors(folder: Path) -> list[str]:
    if (folder / "surgery.json").is_file():
        return [
            "the folder holds an exported model after surgery, which would be lost: load it from Python with "
            "lightning_modules.load_exported, or give the folder of a model as it was before"
        ]
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            return ["the folder holds a PEFT adapter alone. Give the folder of a whole model, with the adapter merged"]
        return ["the folder has no config.json, so it is no Hugging Face model folder"]
    if not _is_json_object(folder / "config.json"):
        return ["the folder's config.json is damaged; save the model there anew"]
    if not any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        return [
            "the folder holds no weights (*.safetensors): neither model.safetensors nor model.safetensors.index.json, "
            "which lists the files of a model in parts. Save the model there with save_pretrained; pickled weights "
            "(*.bin) are not read"
        ]
    return model_config_errors(json.loads((folder / "config.json").read_text()))


def model_config_errors(config: Mapping[str, Any]) -> list[str]:
    """Why a model with this `config.json` is not loaded, one line for each reason."""
    errors = []
    for part in (config, config.get("text_config")):
        if not isinstance(part, Mapping):
            continue
        quantised = part.get("quantization_config") or part.get("compression_config")
        if quantised:
            method = quantised.get("quant_method", "unknown") if isinstance(quantised, Mapping) else quantised
            errors.append(
                f"its weights are quantised (quant_method {method!r}), and surgery and training need plain numbers: "
                "give the model that it was made from, or save it after model.dequantize()"
            )
        if part.get("return_dict") is False or part.get("use_return_dict") is False:
            errors.append("its config.json says return_dict: false, but outputs are read by name: remove the key")
        errors += _attention_errors(part)
    return list(dict.fromkeys(errors))


def _attention_errors(config: Mapping[str, Any]) -> list[str]:
    errors = []
    for key in ("attn_implementation", "_attn_implementation"):
        name = config.get(key)
        if name is not None and name not in _ATTENTION:
            errors.append(f"its config.json says {key}: {name!r}. Allowed: {', '.join(_ATTENTION)}; or remove the key")
        elif name in _ATTENTION_PACKAGES and not _is_installed(_ATTENTION_PACKAGES[name]):
            errors.append(
                f"its config.json says {key}: {name!r}, and the package {_ATTENTION_PACKAGES[name]} is not installed: "
                "remove the key"
            )
    return errors


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the package that it is a part of
        return False


def _name_errors(path: str, key: str) -> list[str]:
    """What is wrong with the name of a hub model."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(path)
    except HFValidationError:
        return [
            f"{key}={path!r} is neither a folder (looked from {Path.cwd()}) nor the name of a hub model, "
            "<owner>/<name> of letters, digits, '-', '_' and '.'"
        ]
    return []


def _is_json_object(file: Path) -> bool:
    try:
        return isinstance(json.loads(file.read_text()), dict)
    except (ValueError, OSError):
        return False


def is_local(path: str) -> bool:
    """A hub id is `name` or `owner/name`; what exists here, or is spelled as a path, is local."""
    return is_there(path) or path.startswith(("/", "./", "../", "~")) or path.count("/") > 1


def absolute_path(path: str) -> str:
    """The absolute path of a local folder; a hub id as it is."""
    return str(Path(path).expanduser().absolute()) if is_local(path) else path
