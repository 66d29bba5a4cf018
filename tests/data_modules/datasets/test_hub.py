import json
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

    def load(repository, config, split=None, streaming=False):
        return lines if split else dict.fromkeys(SPLITS, lines)

    monkeypatch.setattr(hub, "load_from_hub", load)


def test_rows_are_grouped_into_articles(rows):
    expected = [
        Document("First", " \n = First = \n \n Some text . \n \n = = Part = = \n \n"),
        Document("Second", " = Second = \n \n More . \n"),
    ]
    assert DATASETS.build("wikitext2")["validation"] == expected
    assert list(DATASETS.build("wikitext103")["validation"].read()) == expected


def test_pages_are_split_by_index(monkeypatch):
    monkeypatch.setattr(hub, "load_from_hub", lambda *arguments, **keys: iter([{"text": str(i)} for i in range(500)]))
    streams = DATASETS.build("openwebtext")
    texts = [[document.text for document in streams[split].read()] for split in SPLITS]
    assert all(texts)
    assert sorted(text for some in texts for text in some) == sorted(map(str, range(500)))


def test_a_local_copy_goes_the_way_of_text(text_file):
    for name in ("wikitext2", "wikitext103", "openwebtext"):
        assert DATASETS.build(name, path=str(text_file)) == DATASETS.build("text", path=str(text_file))


PROBLEMS = [{"question": f"What is {i} + 1?", "answer": f"{i} + 1 = {i + 1}\n#### {i + 1}"} for i in range(40)]


def problem_text(index):
    return f"What is {index} + 1?\n{index} + 1 = {index + 1}\n#### {index + 1}"


def write_rows(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_a_problem_and_its_answer_are_one_document(tmp_path):
    splits = DATASETS.build("gsm8k", path=write_rows(tmp_path / "problems.jsonl", PROBLEMS))
    assert [document.text for document in splits["all"]] == [problem_text(i) for i in range(40)]
    texts = [document.text for split in SPLITS for document in splits[split]]
    assert sorted(texts) == sorted(problem_text(i) for i in range(40))
    assert all(splits[split] for split in SPLITS)


def test_files_named_for_splits_keep_them(tmp_path):
    write_rows(tmp_path / "train.jsonl", PROBLEMS[:30])
    write_rows(tmp_path / "test.jsonl", PROBLEMS[30:])
    splits = DATASETS.build("gsm8k", path=str(tmp_path))
    assert [document.text for document in splits["train"]] == [problem_text(i) for i in range(30)]
    held_out = [document.text for split in ("validation", "test") for document in splits[split]]
    assert sorted(held_out) == sorted(problem_text(i) for i in range(30, 40))


@pytest.mark.parametrize("missing", ["question", "answer"])
def test_a_missing_column_is_named(tmp_path, missing):
    rows = [{key: value for key, value in row.items() if key != missing} for row in PROBLEMS]
    with pytest.raises(UserError, match=f"has no column '{missing}'"):
        DATASETS.build("gsm8k", path=write_rows(tmp_path / "problems.jsonl", rows))


def test_half_of_the_hubs_test_problems_are_for_validation(monkeypatch):
    asked = []

    def load(*arguments):
        asked.append(arguments)
        return {"train": PROBLEMS[:20], "test": PROBLEMS[20:]}

    monkeypatch.setattr(hub, "load_from_hub", load)
    splits = DATASETS.build("gsm8k")
    assert asked == [("openai/gsm8k", "main")]
    assert list(splits) == list(SPLITS)
    assert splits["train"] == [Document(f"gsm8k:train:{i}", problem_text(i)) for i in range(20)]
    assert len(splits["validation"]) == len(splits["test"]) == 10
    held_out = [document.text for split in ("validation", "test") for document in splits[split]]
    assert sorted(held_out) == sorted(problem_text(i) for i in range(20, 40))


@pytest.mark.parametrize("name", ["wikitext2", "wikitext103", "openwebtext", "gsm8k"])
def test_without_network_the_error_comes_soon_and_names_the_way_out(name, monkeypatch):
    import huggingface_hub

    def unreachable(*arguments, **keys):
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(hub, "WIKITEXT", "nobody/has-this")
    monkeypatch.setattr(hub, "OPENWEBTEXT", "nobody/has-this")
    monkeypatch.setattr(hub, "GSM8K", "nobody/has-this")
    start = time.monotonic()
    with pytest.raises(UserError, match="nobody/has-this.*not known.*dataset.path=<folder>"):
        documents = DATASETS.build(name)["train"]
        next(documents.read())
    assert time.monotonic() - start < 5
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
