"""Pretrained models from the hub or from a local folder, by the ids that the YAML files give."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from registries import MODELS
from registries.memory_errors import lacks_memory
from registries.models.content import folder_sha256
from registries.models.model_folder import absolute_path, folder_errors, is_local, model_config_errors, path_errors
from registries.registry import UserError

CONFIGS = Path(__file__).parent / "configs"

# Registered name -> its hub model, whose config is also in `CONFIGS`, so that it is known without a download.
HUB_IDS = {
    "phi2": "microsoft/phi-2",
    "dialogpt_medium": "microsoft/DialoGPT-medium",
    "llama31_8b": "meta-llama/Llama-3.1-8B",
    "mistral_7b": "mistralai/Mistral-7B-v0.3",
}

# Keys of the weights of a multimodal Gemma 3 -> keys of its language model, which alone is read.
_LANGUAGE_KEYS = {
    r"^language_model\.model\.": "model.",
    r"^model\.language_model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}
_OTHER_MODALITIES = re.compile(r"^(model\.)?(vision_tower|multi_modal_projector)\.")


class PretrainedModel:
    """A causal LM of the hub, or in a local folder with `config.json`, `*.safetensors` and tokenizer files.

    Weights and `config.json` alone decide the model; adapters and settings of decoding beside them are not read.

    Args:
        path: hub id or local folder.
        revision: branch, tag or commit of the hub repository.
    """

    def __init__(self, path: str, revision: str | None = None):
        self.path = absolute_path(path)
        self.revision = revision

    def config(self) -> dict[str, Any] | None:
        file = Path(self.path) / "config.json"
        if not is_local(self.path):
            from huggingface_hub import try_to_load_from_cache

            cached = try_to_load_from_cache(self.path, "config.json", revision=self.revision)
            names = {hub_id: name for name, hub_id in HUB_IDS.items()}
            file = Path(cached) if isinstance(cached, str) else CONFIGS / f"{names.get(self.path)}.json"
        return json.loads(file.read_text()) if file.is_file() else None

    def identity(self) -> str:
        if is_local(self.path):
            return folder_sha256(Path(self.path))
        from huggingface_hub import try_to_load_from_cache

        names = ("config.json", "tokenizer_config.json", "tokenizer.json")
        known = (try_to_load_from_cache(self.path, name, revision=self.revision) for name in names)
        commit = next((Path(file).parent.name for file in known if isinstance(file, str)), self.revision)
        return f"{self.path}@{commit}"

    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return self._load("tokenizer", AutoTokenizer.from_pretrained)

    def model(self, dtype: Any) -> Any:
        """See `ModelLoader`.

        Raises:
            UserError: the model cannot be loaded, or its files do not hold exactly its weights.
        """
        from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

        self._require(folder_errors(Path(self.path)) if is_local(self.path) else [])
        config = self._load("weights", AutoConfig.from_pretrained)
        self._require(model_config_errors(self.config() or config.to_dict()))
        options = {}
        if config.model_type == "gemma3":
            config, options = config.get_text_config(), {"key_mapping": _LANGUAGE_KEYS}
        config.output_attentions = config.output_hidden_states = False  # callers ask for them when they need them
        special = {key: getattr(config, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model, loading_info = self._load(
            "weights",
            AutoModelForCausalLM.from_pretrained,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `_require_all` reports them with all other errors
            generation_config=GenerationConfig(**special),
            adapter_kwargs={"subfolder": "no adapter is looked for"},
            **options,
        )
        self._require_all(loading_info, _OTHER_MODALITIES if options else None)
        untie_if_apart(model)
        return model

    def _require(self, errors: Sequence[str]) -> None:
        if errors:
            raise UserError(f"cannot load the weights of {self.path!r}: {error}" for error in errors)

    def _require_all(self, loading_info: Mapping[str, Any], ignored: re.Pattern | None) -> None:
        """Raise UserError unless the files held all weights of the model, and no others but those to be ignored.

        transformers would draw missing weights at random. A weight that a family ties to another one is not missing.
        """
        unexpected = [key for key in loading_info["unexpected_keys"] if ignored is None or not ignored.match(key)]
        mismatched = [
            f"{key} ({tuple(in_file)}, not {tuple(in_model)})"
            for key, in_file, in_model in loading_info["mismatched_keys"]
        ]
        problems = {
            "are missing": _first_names(loading_info["missing_keys"]),
            "belong to no part of the model": _first_names(unexpected),
            "have another shape than config.json says": _first_names(mismatched),
        }
        messages = [f"{names} {problem}" for problem, names in problems.items() if names]
        if messages:
            raise UserError(
                f"the weights of {self.path!r} are not those of the model that its config.json describes: "
                f"{'; '.join(messages)}. Save the model there anew with save_pretrained, or correct config.json"
            )

    def _load(self, noun: str, load: Callable[..., Any], **options: Any) -> Any:
        from transformers.utils import logging

        logging.disable_progress_bar()
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # errors in the weights are raised here, not reported there
        try:
            return load(self.path, revision=self.revision or "main", trust_remote_code=False, **options)
        except Exception as error:  # a bad config or file may cause any exception in transformers
            if lacks_memory(error):
                raise
            raise UserError(f"cannot load the {noun} of {self.path!r}: {_reason(error)}{self._hint()}") from error
        finally:
            logging.set_verbosity(verbosity)

    def _hint(self) -> str:
        if is_local(self.path):
            return ""
        return "; without network, give a local folder: model.path=<folder>, or use model=smollm2_135m or tiny_phi"


def untie_if_apart(model: Any) -> None:
    """Correct a config that calls the output head tied where the files hold a head of its own.

    Later readers of the config (PEFT, an export) would tie the head, and so overwrite it.
    """
    head = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        model.config.tie_word_embeddings = False


def _first_names(keys: Iterable[str]) -> str:
    """The first of these names, and the number of the rest."""
    keys = sorted(keys)
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _reason(error: Exception) -> str:
    """An error on one line, with its class where its message alone is no sentence."""
    from safetensors import SafetensorError

    if isinstance(error, (OSError, ValueError, ImportError, SafetensorError)):
        return str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _register(name: str) -> None:
    @MODELS.register(name, check=path_errors)
    def build(path: str, revision: str | None = None) -> PretrainedModel:
        """A model of the hub, or a local folder given as path."""
        return PretrainedModel(path, revision)


for _name in HUB_IDS:
    _register(_name)
