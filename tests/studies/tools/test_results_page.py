import json

import pytest

from registries.registry import UserError
from studies.tools.results_page import fill, main

PAGE = "# Title\n\nText.\n\n<!-- table: depth -->\nold\n<!-- end -->\n\nMore.\n"


def result(depth, ratio, name="depth", status="finished", model="tiny_phi", recovery=None):
    return {
        "status": status,
        "config": {
            "model": {"name": model},
            "dataset": {"name": "pydoc"},
            "trainer": {},
            "size": {"name": "small"},
            "experiment": {"name": name},
            "replacement": {"name": "toroidal", "depth": depth},
            "recovery": recovery or {},
        },
        "metrics": {"val/ppl_ratio": ratio, "val/ppl_ratio_low": ratio - 0.1, "val/ppl_ratio_high": ratio + 0.1},
    }


def test_a_row_for_each_run_with_what_varied_in_its_order():
    page = fill(PAGE, [result(8, 1.3), result(2, 1.1), result(4, 1.2), result(1, 9.0, status="failed")])
    assert page.startswith("# Title\n\nText.\n\n<!-- table: depth -->\n`python train.py experiment=depth size=small")
    assert page.endswith("\n<!-- end -->\n\nMore.\n")
    assert [line for line in page.splitlines() if line.startswith("|")] == [
        "| depth | at the end |",
        "| --- | --- |",
        "| 2 | 1.1000 (1.0000 - 1.2000) |",
        "| 4 | 1.2000 (1.1000 - 1.3000) |",
        "| 8 | 1.3000 (1.2000 - 1.4000) |",
    ]


def test_filling_again_changes_nothing():
    page = fill(PAGE, [result(2, 1.1), result(4, 1.2)])
    assert fill(page, [result(2, 1.1), result(4, 1.2)]) == page


def test_a_table_for_each_model():
    page = fill(PAGE, [result(2, 1.1), result(4, 1.2), result(2, 1.3, model="phi2"), result(4, 1.4, model="phi2")])
    assert page.count("| depth | at the end |") == 2
    assert page.index("model=phi2") < page.index("model=tiny_phi")


def test_pipelines_are_named_by_their_stages():
    runs = [result(2, 1.1, recovery={"transfer": {"steps": None}, "kl": {"steps": 3}}), result(2, 1.2)]
    page = fill(PAGE, runs)
    assert "| transfer + kl |" in page
    assert "| transfer + next_token |" in page


def test_of_runs_of_the_same_config_the_first_is_shown():
    """`runs` gives the newest first."""
    page = fill(PAGE, [result(2, 1.1), result(2, 1.9), result(4, 1.2)])
    assert "1.1000" in page and "1.9000" not in page


def test_losses_of_groups_of_positions_have_columns():
    runs = [result(2, 1.1), result(4, 1.2)]
    for number, run in enumerate(runs):
        run["metrics"] |= {"val/loss_positions_0_255": 3.0 + number, "val/loss_first_period": 5.0}
    assert "| depth | at the end | loss, 0-255 | loss, first period |" in fill(PAGE, runs)


def test_an_experiment_that_was_not_run():
    with pytest.raises(UserError, match="no finished run of experiment 'depth': python train.py experiment=depth"):
        fill(PAGE, [result(2, 1.1, name="layers")])


def test_a_run_that_a_sweep_found_done_before_is_in_the_tables_of_both_experiments(tmp_path):
    folders = [tmp_path / "runs" / name for name in ("1", "2", "3")]
    for folder, ratio, experiment in zip(folders, (1.0, 2.0, 3.0), ("depth", "init", "depth"), strict=True):
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result(int(folder.name), ratio, experiment)))
    sweep = tmp_path / "sweeps" / "1"
    (sweep / "jobs").mkdir(parents=True)
    (sweep / "multirun.yaml").write_text("experiment: {name: init}")
    for number, folder in enumerate(folders[:2]):
        (sweep / "jobs" / f"{number:05d}").write_text(str(folder.resolve()))
    page = tmp_path / "page.md"
    page.write_text(PAGE + PAGE.replace("depth", "init"))
    main(str(page), str(tmp_path))
    depth, init = page.read_text().split("experiment=init")
    assert [ratio for ratio in ("1.0000", "2.0000", "3.0000") if f" {ratio} (" in depth] == ["1.0000", "3.0000"]
    assert [ratio for ratio in ("1.0000", "2.0000", "3.0000") if f" {ratio} (" in init] == ["1.0000", "2.0000"]


def test_models_that_were_trained_from_scratch_are_compared_in_one_table(monkeypatch):
    monkeypatch.setattr("studies.report.sweep_table._over", lambda setting, best: {})

    def trained(model, seed, loss):
        run = {
            **result(2, 1.0, model=model),
            "baseline": {"loss": 7.0},
            "dataset": {"name": "pydoc"},
            "folder": "nowhere",
        }
        run["config"] = {key: value for key, value in run["config"].items() if key != "replacement"}
        run["config"] |= {"model": {"name": model, "freeze": False}, "seed": seed}
        return {**run, "metrics": {"val/loss": loss, "train/tokens": 100.0}}

    runs = [
        trained(model, seed, loss + seed / 10) for model, loss in (("lstm", 2.0), ("random", 3.0)) for seed in (0, 1)
    ]
    page = fill(PAGE, runs)
    assert "`python train.py experiment=depth size=small dataset=pydoc`" in page
    (header, _, first, second) = [line for line in page.splitlines() if line.startswith("|")]
    assert header.startswith("| model |") and first.startswith("| lstm |") and "told apart" in second
    assert "* seeds differ by a standard deviation of 0.071 in loss (2 degrees of freedom)" in page
