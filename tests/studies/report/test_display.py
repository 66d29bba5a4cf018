"""What a run prints, read as a user reads it."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from studies.progress import only_results_on_stdout, say, show_folder
from studies.report import display
from studies.report.cells import cell, shown_columns
from studies.report.display import ranges
from studies.report.sweep_table import untouched_losses


@pytest.fixture
def printed(monkeypatch):
    """What was printed up to now."""
    screen = io.StringIO()
    monkeypatch.setattr(display, "console", Console(file=screen, highlight=False, soft_wrap=True, width=140))
    return screen.getvalue


def rows(text):
    """First cell -> the others, of every row of the printed tables."""
    lines = [[part.strip() for part in line.strip("│┃").split("│")] for line in text.splitlines() if "│" in line]
    return {first: others for first, *others in lines}


def result(adapter="none", compressor="none", **metrics):
    config = {"adapter": {"name": adapter}, "compressor": {"name": compressor}}
    return {"metrics": metrics, "stages": {"transfer": {}, "kl": {}, "next_token": {}}, "config": config}


SCORES = {"baseline/loss": 2.5, "swap/loss": 4.0, "transfer/loss": 3.0, "val/loss": 2.625, "test/loss": 2.75}


def test_scores_have_a_row_for_each_state_of_the_model(printed):
    display.show_scores(result(**SCORES, **{"baseline/test/loss": 2.25, "val/bpb": 0.75}))
    table = rows(printed())
    assert list(table) == [
        "untouched",
        "after surgery",
        "after transfer",
        "at the end",
        "untouched, test",
        "at the end, test",
    ]
    assert table["after surgery"] == ["4.0000", "", "", "", ""]
    assert table["at the end"] == ["2.6250", "", "", "0.7500", ""]


@pytest.mark.parametrize("between", [{"adapter": "ridge"}, {"compressor": "pooling"}])
def test_with_two_models_the_target_alone_stands_beside_what_it_reads_through_the_source(between, printed):
    display.show_scores(result(**between, **SCORES, **{"baseline/test/loss": 2.25}))
    table = rows(printed())
    assert table["target alone"][0] == "2.5000"
    assert table["through the source"][0] == "2.6250"
    assert (table["target alone, test"][0], table["through the source, test"][0]) == ("2.2500", "2.7500")
    assert not {"untouched", "at the end"} & set(table)


def test_ratios_are_shown_with_their_intervals_where_there_are_any(printed):
    ratios = {
        f"{split}/ppl_ratio_control{end}": 1.0 + k for split in ("val", "test") for k, end in enumerate(("", "_low"))
    }
    display.show_scores(
        result(**SCORES, **ratios, **{"val/ppl_ratio_control_high": 3.0, "test/ppl_ratio_control_high": 4.0})
    )
    table = rows(printed())
    assert table["the unmodified model, same training"] == ["1.0000", "2.0000 - 3.0000", "1.0000", "2.0000 - 4.0000"]
    assert "the untouched model" not in table


def test_parameters_that_are_alike_are_one_line(printed):
    weights = {f"layers.{layer}.attention.weight": torch.zeros(3, 2) for layer in (0, 1, 2, 5)}
    display.show_parameters("transfer", {**weights, "norm.weight": torch.zeros(7)})
    table = rows(printed())
    assert table["layers.*.attention.weight"] == ["0-2, 5", "3 x 2", "24"]
    assert table["norm.weight"] == ["", "7", "7"]
    assert table["all"] == ["", "", "31"]


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([3], "3"), ([2, 0, 1], "0-2"), ([0, 2, 3, 7], "0, 2-3, 7"), ([5, 4], "4-5")]
)
def test_layers_are_told_as_spans(numbers, text):
    assert ranges(numbers) == text


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ({"loss": 2.34567}, "2.3457"),
        ({"loss": 123.456}, "123.5"),
        ({"loss": 98765.4}, "98,765"),
        ({"loss": 12345}, "12,345"),
        ({"loss": "ridge"}, "ridge"),
        ({"loss": 1.5, "loss +-": 0.0123}, "1.5000 +- 0.012"),
        ({"loss": 1.5, "loss, low": 1.25, "loss, high": 1.75}, "1.5000 (1.2500 - 1.7500)"),
        ({}, ""),
    ],
)
def test_a_cell_holds_its_value_with_its_interval(line, text):
    assert cell(line, "loss") == text


def test_margins_stand_in_the_cells_of_others_and_bits_per_byte_only_where_models_differ():
    line = {
        "depth": 2,
        "loss": 1.0,
        "loss +-": 0.1,
        "loss, low": 0.9,
        "loss, high": 1.1,
        "eval s": 3.0,
        "bits/byte": 0.5,
    }
    assert shown_columns([line], 1) == ["depth", "loss"]
    assert shown_columns([line], 2) == ["depth", "loss", "bits/byte"]


def test_one_document_has_no_interval(printed):
    display.show_scores(result(**SCORES, **{"val/ppl_ratio": 1.5, "test/ppl_ratio": 1.25}))
    assert rows(printed())["the untouched model"] == ["1.5000", "none: one document", "1.2500", "none: one document"]
    line = {"over the best": 1.5, "over the best, low": 0.0, "over the best, high": float("inf")}
    assert cell(line, "over the best") == "1.5000 (none: one document)"


def test_within_a_run_only_results_go_to_stdout(capsys):
    with only_results_on_stdout():
        print("a library's line")
        say("loading")
        show_folder("outputs/runs/one")
    show_folder("outputs/runs/two")
    printed = capsys.readouterr()
    assert printed.out.splitlines() == ["outputs/runs/one", "outputs/runs/two"]
    assert printed.err.splitlines() == ["a library's line", "loading"]


def test_numbers_of_a_wide_table_stay_in_one_piece(monkeypatch):
    monkeypatch.setattr(display, "console", Console(file=io.StringIO(), width=60))
    line = {"adapter.name": "ridge", **{f"a number {index}": 1000.5 + index for index in range(20)}, "trained": 839488}
    display.show_settings("a sweep", [line], {"tiny_phi on pydoc": 3.8404})
    written = display.console.file.getvalue()
    assert "839,488" in written
    assert all(f"{1000.5 + index:,.0f}" in written for index in range(20))


def test_untouched_models_on_other_texts_have_rows_of_their_own():
    def run(block_size, loss):
        config = {"trainer": {}, "dataset": {"name": "text", "block_size": block_size}, "model": {"name": "tiny_phi"}}
        dataset = {"name": "text", "validation": {"blocks": 1024 // block_size}}
        return Path("nowhere"), {"config": config, "dataset": dataset, "baseline": {"loss": loss}}

    runs = [run(256, 4.1), run(512, 4.3)]
    assert untouched_losses(runs) == {
        "tiny_phi on text, block_size=256": 4.1,
        "tiny_phi on text, block_size=512": 4.3,
    }
    assert untouched_losses([run(256, 4.1), run(256, 4.1)]) == {"tiny_phi on text": 4.1}
