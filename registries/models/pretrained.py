"""Pretrained models from the hub or from a local folder, by the ids that the YAML files give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from registries import MODELS
from registries.registry import UserError, is_there

CONFIGS = Path(__file__).parent / "configs"

# Registered name -> the hub model that it names. A copy of its config is known without a download.
HUB_IDS = {
    "phi2": "microsoft/phi-2",
    "dialogpt_medium": "microsoft/DialoGPT-medium",
    "llama31_8b": "meta-llama/Llama-3.1-8B",
    "mistral_7b": "mistralai/Mistral-7B-v0.3",
}


def check(path: str | None, revision: str | None = None) -> list[str]:
    """What is wrong with a local folder: not a model folder, or no weights in it."""
    if path is None:
        return []
    if not _is_local(path):
        return _name_errors(path)
    if not is_there(path, folder=True):
        return [f"model.path={path}: there is no such folder"]
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        return [f"model.path={path}: the folder has no config.json, so it is no Hugging Face model folder"]
    if not _is_json_object(folder / "config.json"):
        return [f"model.path={path}: the folder's config.json is damaged; save the model there anew"]
    if not any(folder.glob("*.safetensors")):
        return [
            f"model.path={path}: the folder holds no weights (*.safetensors). Save the model there with "
            "save_pretrained; pickled weights (*.bin) are not read"
        ]
    return []


class PretrainedModel:
    """A causal LM of the hub, or in a local folder with `config.json`, `*.safetensors` and tokenizer files.

    Args:
        path: hub id or local folder.
        revision: branch, tag or commit of the hub repository.
    """

    def __init__(self, path: str, revision: str | None = None):
        self.path = str(Path(path).expanduser()) if _is_local(path) else path
        self.revision = revision

    def config(self) -> dict[str, Any] | None:
        file = Path(self.path) / "config.json"
        if not _is_local(self.path):
            from huggingface_hub import try_to_load_from_cache

            cached = try_to_load_from_cache(self.path, "config.json", revision=self.revision)
            names = {hub_id: name for name, hub_id in HUB_IDS.items()}
            file = Path(cached) if isinstance(cached, str) else CONFIGS / f"{names.get(self.path)}.json"
        return json.loads(file.read_text()) if file.is_file() else None

    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return self._load(AutoTokenizer, "tokenizer")

    def model(self, dtype: Any) -> Any:
        from transformers import AutoModelForCausalLM

        return self._load(AutoModelForCausalLM, "weights", dtype=dtype, use_safetensors=True)

    def _load(self, loader: Any, what: str, **options: Any) -> Any:
        from safetensors import SafetensorError
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            return loader.from_pretrained(self.path, revision=self.revision or "main", **options)
        except (OSError, ValueError, SafetensorError) as error:
            reason = str(error).strip().split("\n")[0]
            hint = (
                ""
                if _is_local(self.path)
                else (
                    "; without network, give a local folder: model.path=<folder>, or use model=smollm2_135m or tiny_phi"
                )
            )
            raise UserError(f"cannot load the {what} of {self.path!r}: {reason}{hint}") from error


def _name_errors(path: str) -> list[str]:
    """What is wrong with the name of a hub model."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(path)
    except HFValidationError:
        return [
            f"model.path={path!r} is neither a folder (looked from {Path.cwd()}) nor the name of a hub model, "
            "<owner>/<name> of letters, digits, '-', '_' and '.'"
        ]
    return []


def _is_json_object(file: Path) -> bool:
    try:
        return isinstance(json.loads(file.read_text()), dict)
    except (ValueError, OSError):
        return False


def _is_local(path: str) -> bool:
    """A hub id is `name` or `owner/name`; what exists here, or is spelled as a path, is local."""
    return is_there(path) or path.startswith(("/", "./", "../", "~")) or path.count("/") > 1


def _register(name: str) -> None:
    @MODELS.register(name, check=check)
    def build(path: str, revision: str | None = None) -> PretrainedModel:
        """A model of the hub, or a local folder given as path."""
        return PretrainedModel(path, revision)


for _name in HUB_IDS:
    _register(_name)
