import time

import pytest

from data_modules import DATASETS
from data_modules.datasets import hub
from data_modules.documents import SPLITS, Document
from registries.registry import UserError


@pytest.fixture
def rows(monkeypatch):
    """The hub's answer: rows as the hub has them, with empty texts for blank lines."""
    articles = [
        "",
        " = First = \n",
        "",
        " Some text . \n",
        "",
        " = = Part = = \n",
        "",
        " = Second = \n",
        "",
        " More . \n",
    ]
    lines = [{"text": text} for text in articles]

    def load(name, repository, config, split=None, streaming=False):
        return lines if split else dict.fromkeys(SPLITS, lines)

    monkeypatch.setattr(hub, "_load", load)


def test_rows_are_grouped_into_articles(rows):
    expected = [
        Document("First", " \n = First = \n \n Some text . \n \n = = Part = = \n \n"),
        Document("Second", " = Second = \n \n More . \n"),
    ]
    assert DATASETS.build("wikitext2")["validation"] == expected
    assert list(DATASETS.build("wikitext103")["validation"].read()) == expected


def test_pages_are_split_by_index(monkeypatch):
    monkeypatch.setattr(hub, "_load", lambda *arguments, **keys: iter([{"text": str(i)} for i in range(500)]))
    streams = DATASETS.build("openwebtext")
    texts = [[document.text for document in streams[split].read()] for split in SPLITS]
    assert all(texts)
    assert sorted(text for some in texts for text in some) == sorted(map(str, range(500)))


def test_a_local_copy_goes_the_way_of_text(text_file):
    for name in ("wikitext2", "wikitext103", "openwebtext"):
        assert DATASETS.build(name, path=str(text_file)) == DATASETS.build("text", path=str(text_file))


@pytest.mark.parametrize("name", ["wikitext2", "wikitext103", "openwebtext"])
def test_without_network_the_error_comes_soon_and_names_the_way_out(name, monkeypatch):
    import huggingface_hub

    def unreachable(*arguments, **keys):
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(hub, "WIKITEXT", "nobody/has-this")
    monkeypatch.setattr(hub, "OPENWEBTEXT", "nobody/has-this")
    start = time.monotonic()
    with pytest.raises(UserError, match=rf"'{name}'.*not known.*dataset.path=<folder>"):
        documents = DATASETS.build(name)["train"]
        next(documents.read())
    assert time.monotonic() - start < 5
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
