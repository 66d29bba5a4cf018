"""Texts from the Hugging Face hub; `path` reads a local copy instead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from data_modules import DATASETS
from data_modules.documents import SPLITS, Document, Stream, halve, split_of
from data_modules.text_files import check_path, read_path, wikitext_articles
from registries.registry import UserError

WIKITEXT = "Salesforce/wikitext"
OPENWEBTEXT = "Skylion007/openwebtext"
GSM8K = "openai/gsm8k"


@DATASETS.register("wikitext2", check=check_path)
def wikitext2(path: str | None = None) -> dict[str, list[Document]]:
    """WikiText-2 (raw): 600 Wikipedia articles to train on, 2 million words; Merity et al. 2016, arXiv:1609.07843."""
    if path is not None:
        return read_path(path, rows_are_lines=True)
    rows = load_from_hub(WIKITEXT, "wikitext-2-raw-v1")
    return {split: list(wikitext_articles(_lines(rows[split]))) for split in SPLITS}


@DATASETS.register("wikitext103", check=check_path)
def wikitext103(path: str | None = None) -> dict[str, list[Document]] | dict[str, Stream]:
    """WikiText-103 (raw): 28,000 Wikipedia articles, 103 million words; read only as far as the sizes ask for."""
    if path is not None:
        return read_path(path, rows_are_lines=True)

    def articles(split: str) -> Iterator[Document]:
        rows = load_from_hub(WIKITEXT, "wikitext-103-raw-v1", split, streaming=True)
        return wikitext_articles(_lines(rows))

    return {split: Stream(f"{WIKITEXT} wikitext-103-raw-v1 {split}", partial(articles, split)) for split in SPLITS}


# The data module supplies the sizes; the default means that it supplied none, and None that a size is unlimited.
def _check_openwebtext(
    path: str | None, train_size: int | None = 1, val_size: int | None = 1, test_size: int | None = 1
) -> list[str]:
    if path is not None:
        return check_path(path)
    sizes = {"train_size": train_size, "val_size": val_size, "test_size": test_size}
    return [
        f"dataset 'openwebtext' with dataset.{key}=null would read all 8 million documents: set dataset.{key} to a "
        "number of blocks"
        for key, size in sizes.items()
        if size is None
    ]


@DATASETS.register("openwebtext", check=_check_openwebtext)
def openwebtext(path: str | None = None) -> dict[str, list[Document]] | dict[str, Stream]:
    """OpenWebText: 8 million web pages, 9 billion tokens; read only as far as the sizes ask for.

    The hub has a train split alone; documents are split by the hash of their index.
    """
    if path is not None:
        return read_path(path)

    def pages(split: str) -> Iterator[Document]:
        rows = load_from_hub(OPENWEBTEXT, None, "train", streaming=True)
        documents = (Document(f"openwebtext:{index}", row["text"]) for index, row in enumerate(rows))
        return (document for document in documents if split_of(document.name) == split)

    return {split: Stream(f"{OPENWEBTEXT} {split}", partial(pages, split)) for split in SPLITS}


@DATASETS.register("gsm8k", check=check_path)
def gsm8k(path: str | None = None) -> dict[str, list[Document]]:
    """GSM8K: 8,800 school mathematics problems with worked answers; Cobbe et al. 2021, arXiv:2110.14168.

    The hub has no validation split: half of the test problems is taken for it.
    """
    if path is not None:
        return read_path(path, field=("question", "answer"))
    rows = load_from_hub(GSM8K, "main")
    problems = {
        split: [
            Document(f"gsm8k:{split}:{index}", f"{row['question']}\n{row['answer']}")
            for index, row in enumerate(rows[split])
        ]
        for split in ("train", "test")
    }
    validation, test = halve(problems["test"])
    return {"train": problems["train"], "validation": validation, "test": test}


def _lines(rows: Any) -> Iterator[str]:
    """The lines of the original files; blank lines are empty in the hub's copy."""
    return (row["text"] or " \n" for row in rows)


def load_from_hub(repository: str, config: str | None = None, split: str | None = None, streaming: bool = False) -> Any:
    """A dataset of the hub or, without network, of the Hugging Face cache.

    Raises:
        UserError: it is in neither; raised within seconds, where the library itself would retry for 23 s.
    """
    import datasets
    import huggingface_hub

    try:
        huggingface_hub.HfApi().dataset_info(repository, timeout=5)
        return datasets.load_dataset(repository, config, split=split, streaming=streaming)
    except Exception as error:
        reason = error
    try:
        with _offline():
            return datasets.load_dataset(repository, config, split=split)
    except Exception:
        raise UserError(
            f"dataset {repository} could not be read from the Hugging Face hub: {reason}. "
            "Without network, give a local copy: dataset.path=<folder>"
        ) from reason


@contextmanager
def _offline() -> Iterator[None]:
    """Make the Hugging Face libraries use their cache without asking the network first."""
    import datasets
    import huggingface_hub

    settings = (datasets.config, huggingface_hub.constants)
    previous = [module.HF_HUB_OFFLINE for module in settings]
    try:
        for module in settings:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(settings, previous, strict=True):
            module.HF_HUB_OFFLINE = value
