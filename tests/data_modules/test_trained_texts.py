import json

import pytest

from data_modules.dataset_settings import DatasetSettings
from data_modules.trained_texts import warn_of_trained_texts

RECORDS = [{"instruction": f"Count to {index}.", "output": f"One to {index}."} for index in range(200)]


def settings(name, **keys):
    return DatasetSettings.read({"name": name, **keys})


@pytest.fixture
def tell(tmp_path, caplog):
    """What is told of a file of these records that a run was trained on, and its copy under another name."""
    for name in ("records.jsonl", "other.jsonl"):
        (tmp_path / name).write_text("\n".join(map(json.dumps, RECORDS)))

    def tell(trained, scored, split, **keys):
        datasets = (settings(name, path=str(tmp_path / file), **keys) for name, file in (trained, scored))
        warn_of_trained_texts(*datasets, split)
        return caplog.text

    return tell


def test_the_same_records_under_another_name_are_told(tell):
    """Their split goes by file and row, so that other records are held out there."""
    told = tell(("alpaca", "records.jsonl"), ("alpaca", "other.jsonl"), "validation")
    assert "scored documents (split=validation) are in the run's training split (dataset=alpaca)" in told


def test_the_same_texts_under_another_name_are_held_out_there_too(tell):
    assert not tell(("text", "records.jsonl"), ("text", "other.jsonl"), "validation", field="output")
    assert "of 200 scored documents (split=all)" in tell(
        ("text", "records.jsonl"), ("text", "other.jsonl"), "all", field="output"
    )


def test_what_was_held_out_is_not_told(tell):
    assert not tell(("alpaca", "records.jsonl"), ("alpaca", "records.jsonl"), "test")


def test_a_training_text_that_is_gone_is_told(tell):
    assert "cannot be told: dataset.path=" in tell(("text", "gone.txt"), ("text", "other.jsonl"), "all", field="output")


def test_random_tokens_are_no_text(caplog):
    warn_of_trained_texts(settings("periodic"), settings("periodic"), "all")
    assert not caplog.text
