"""Tokenizers that are trained on the training split of a dataset, once, and then read from the cache."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from data_modules import DATASETS, TOKENIZERS
from data_modules.dataset_settings import DatasetSettings
from data_modules.documents import Stream
from data_modules.instructions import InstructionData
from data_modules.tokenizer_settings import TokenizerSettings
from data_modules.tokens import UNKNOWN_BYTES, vocabulary_size
from registries.partial_files import atomic_write
from registries.registry import UserError

log = logging.getLogger(__name__)

FORMAT = 1  # raise it when the same texts would give another tokenizer than before
STREAMED = 10_000  # documents of a stream that are read


def trained_tokenizer(settings: TokenizerSettings, dataset: DatasetSettings, cache_dir: str | Path) -> Any:
    """The tokenizer of a config; from the folder `tokenizers` of the cache where it was trained before.

    Raises:
        UserError: the texts have fewer different tokens than the config asks for, or the cache cannot be written.
    """
    texts = training_texts(DATASETS.build(dataset.name, **dataset.arguments))
    content = json.dumps([FORMAT, settings.name, settings.arguments, texts])
    name = hashlib.sha256(content.encode()).hexdigest()
    file = Path(cache_dir).expanduser() / "tokenizers" / f"{name}.json"
    kept = _read(file)
    if kept is not None:
        return kept
    plain = [without(text, settings.arguments.get("special_tokens") or []) for text in texts]
    tokenizer = TOKENIZERS.build(settings.name, texts=plain, **settings.arguments)
    size = vocabulary_size(tokenizer)
    if size < settings.num_tokens:
        raise UserError(
            f"tokenizer.vocab_size={settings.num_tokens}: the training texts of dataset {dataset.name!r} give only "
            f"{size} tokens; set tokenizer.vocab_size to at most that, or train on more text"
        )
    _write(tokenizer, file)
    return tokenizer


def without(text: str, special_tokens: Iterable[str]) -> str:
    """A text without the special tokens that it writes out, which are no text to learn from."""
    for token in special_tokens:
        text = text.replace(token, " ")
    return text


def training_texts(content: Any) -> list[str]:
    """The texts that a tokenizer is trained on: training documents; of instruction data, prompts and responses."""
    if isinstance(content, InstructionData):
        return [text for example in content.examples["train"] for text in (example.prompt, example.response)]
    documents = content["train"]
    if isinstance(documents, Stream):
        documents = islice(documents.read(), STREAMED)
    return [document.text for document in documents]


def _read(file: Path) -> Any | None:
    """The tokenizer in a file; None where there is none, or it is damaged."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text())
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(content["tokenizer"]), **content["settings"])
    except Exception as error:  # the tokenizers library raises plain ones
        log.warning("training the tokenizer of the damaged cache entry %s anew (%s)", file, error)
        return None


def _write(tokenizer: Any, file: Path) -> None:
    settings = {key: str(token) for key, token in tokenizer.special_tokens_map.items()}
    if UNKNOWN_BYTES in tokenizer.init_kwargs:
        settings[UNKNOWN_BYTES] = tokenizer.init_kwargs[UNKNOWN_BYTES]
    content = {"tokenizer": tokenizer.backend_tokenizer.to_str(), "settings": settings}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as partial:
            partial.write_text(json.dumps(content))
    except OSError as error:
        raise UserError(
            f"cannot write the tokenizer to {file.parent}: {error}; free some space or set cache_dir=<folder>"
        ) from error
