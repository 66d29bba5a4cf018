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

# Registered name -> the hub model that it names. A copy of its config is known without a download.
HUB_IDS = {
    "phi2": "microsoft/phi-2",
    "dialogpt_medium": "microsoft/DialoGPT-medium",
    "llama31_8b": "meta-llama/Llama-3.1-8B",
    "mistral_7b": "mistralai/Mistral-7B-v0.3",
}


# A multimodal Gemma 3 is read as the language model in it: the keys of its weights -> those of that model.
_LANGUAGE_KEYS = {
    r"^language_model\.model\.": "model.",
    r"^model\.language_model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}
_OTHER_MODALITIES = re.compile(r"^(model\.)?(vision_tower|multi_modal_projector)\.")


class PretrainedModel:
    """A causal LM of the hub, or in a local folder with `config.json`, `*.safetensors` and tokenizer files.

    The model is what its weights and its `config.json` are: adapters and settings of decoding that lie beside them
    change nothing.

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
            UserError: the model cannot be loaded, or the weights in its files are not those that it needs.
        """
        from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

        self._require(folder_errors(Path(self.path)) if is_local(self.path) else [])
        config = self._load("weights", AutoConfig.from_pretrained)
        self._require(model_config_errors(self.config() or config.to_dict()))
        options = {}
        if config.model_type == "gemma3":
            config, options = config.get_text_config(), {"key_mapping": _LANGUAGE_KEYS}
        config.output_attentions = config.output_hidden_states = False  # whoever wants them asks for them
        special = {key: getattr(config, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model, read = self._load(
            "weights",
            AutoModelForCausalLM.from_pretrained,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, with all that is wrong
            generation_config=GenerationConfig(**special),
            adapter_kwargs={"subfolder": "no adapter is looked for"},
            **options,
        )
        self._require_all(read, _OTHER_MODALITIES if options else None)
        untie_if_apart(model)
        return model

    def _require(self, errors: Sequence[str]) -> None:
        if errors:
            raise UserError(f"cannot load the weights of {self.path!r}: {error}" for error in errors)

    def _require_all(self, read: Mapping[str, Any], left_out: re.Pattern | None) -> None:
        """Raise UserError unless the files held the model's weights, all of them and no others but those left out.

        transformers draws what is missing anew. What a family ties to another weight is not missing.
        """
        unexpected = [key for key in read["unexpected_keys"] if left_out is None or not left_out.match(key)]
        shapes = [
            f"{key} ({tuple(in_files)}, not {tuple(in_model)})" for key, in_files, in_model in read["mismatched_keys"]
        ]
        problems = {
            "are missing": _named(read["missing_keys"]),
            "belong to no part of the model": _named(unexpected),
            "have another shape than config.json says": _named(shapes),
        }
        messages = [f"{names} {problem}" for problem, names in problems.items() if names]
        if messages:
            raise UserError(
                f"the weights of {self.path!r} are not those of the model that its config.json describes: "
                f"{'; '.join(messages)}. Save the model there anew with save_pretrained, or correct config.json"
            )

    def _load(self, what: str, load: Callable[..., Any], **options: Any) -> Any:
        from transformers.utils import logging

        logging.disable_progress_bar()
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # its report on the weights: what is wrong with them is an error of ours
        try:
            return load(self.path, revision=self.revision or "main", trust_remote_code=False, **options)
        except Exception as error:  # transformers raises whatever a config or a file makes its code meet
            if lacks_memory(error):
                raise
            raise UserError(f"cannot load the {what} of {self.path!r}: {_reason(error)}{self._hint()}") from error
        finally:
            logging.set_verbosity(verbosity)

    def _hint(self) -> str:
        if is_local(self.path):
            return ""
        return "; without network, give a local folder: model.path=<folder>, or use model=smollm2_135m or tiny_phi"


def untie_if_apart(model: Any) -> None:
    """Let a config that calls the output head tied say so no longer where the files hold another one.

    Whoever reads the config later (PEFT, an export) would tie the head, and overwrite it.
    """
    head = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        model.config.tie_word_embeddings = False


def _named(keys: Iterable[str]) -> str:
    """The first of these names, and how many there are."""
    keys = sorted(keys)
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _reason(error: Exception) -> str:
    """An error on one line; by its kind too where its message is no sentence."""
    from safetensors import SafetensorError

    text = " ".join(str(error).split())
    if isinstance(error, (OSError, ValueError, ImportError, SafetensorError)):
        return str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}"


def _register(name: str) -> None:
    @MODELS.register(name, check=path_errors)
    def build(path: str, revision: str | None = None) -> PretrainedModel:
        """A model of the hub, or a local folder given as path."""
        return PretrainedModel(path, revision)


for _name in HUB_IDS:
    _register(_name)
