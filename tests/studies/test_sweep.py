import csv
import gc
import json
import math
import weakref

import pytest

import train
from studies import sweep
from studies.config.launch import launch
from studies.report.cells import cell, shown_columns
from studies.report.sweep_summary import summarise
from studies.report.sweep_table import Setting, group, newest, summary_table, varied_keys
from studies.run.jobs import Job, sweep_runs
from studies.run.results import read_result

LOSSES = {("attention", 1e-3): (2.0, 2.2), ("attention", 3e-3): (1.9, 2.0), ("mlp", 1e-3): (1.7, 1.8)}


def result(placement, lr, seed, loss, status="finished"):
    metrics = {
        "val/loss": loss,
        "val/ppl": math.exp(loss),
        "params/trainable": 10 * len(placement),
        "time/train_s": 5.0,
    }
    return {
        "status": status,
        "metrics": metrics if status == "finished" else {},
        "baseline": {"loss": 3.0},
        "pid": 1,
        "heartbeat": 0.0,
        "dataset": {"name": "text"},
        "mlflow_run_id": None,
        "config": {
            "model": {"name": "random"},
            "placement": {"name": placement, "rank": 8},
            "optimizer": {"lr": lr},
            "trainer": {"max_steps": 3},
            "dataset": {"name": "text"},
            "seed": seed,
        },
    }


@pytest.fixture
def runs(tmp_path):
    found = []
    for (placement, lr), losses in LOSSES.items():
        for seed, loss in enumerate(losses):
            folder = tmp_path / "runs" / f"{placement}_{lr}_{seed}"
            folder.mkdir(parents=True)
            content = result(placement, lr, seed, loss)
            (folder / "result.json").write_text(json.dumps(content))
            documents = [(loss * 10 + index, 10) for index in (0.5, -0.5, 0.1)]
            (folder / "documents.json").write_text(json.dumps({"val/": documents}))
            found.append((folder, content))
    return found


def test_keys_vary_where_two_that_have_them_differ():
    assert varied_keys([{"a": 1, "b": 1}, {"a": 2, "b": 1}, {"b": 1, "c": 3}]) == ["a"]


def test_what_follows_from_the_option_of_a_group_does_not_vary():
    one, other = {"adapter.name": "lora", "adapter.lr": 3e-3}, {"adapter.name": "linear", "adapter.lr": 1e-2}
    assert varied_keys([one, other]) == ["adapter.name"]
    assert varied_keys([one, other, {**other, "adapter.lr": 1e-3}]) == ["adapter.lr", "adapter.name"]
    assert varied_keys([{"optimizer.lr": 1}, {"optimizer.lr": 2}]) == ["optimizer.lr"]


def test_settings_gather_seeds_and_come_best_first(runs):
    settings = group(runs)
    assert [list(setting.values.values()) for setting in settings] == [
        ["0.001", "mlp"],
        ["0.003", "attention"],
        ["0.001", "attention"],
    ]
    assert [len(setting.runs) for setting in settings] == [2, 2, 2]
    assert settings[0].mean("val/loss") == pytest.approx(1.75)
    # Student's t with one degree of freedom: 12.706 standard errors, which are half the difference.
    assert settings[0].margin("val/loss") == pytest.approx(12.706 * 0.05, rel=1e-3)


def test_models_that_cut_text_differently_are_ranked_by_bits_per_byte_and_not_compared(runs):
    for index, (_, content) in enumerate(runs):
        content["dataset"]["validation"] = {"tokens": 100, "bytes": 300 + index // 2}
        content["metrics"]["val/bpb"] = -content["metrics"]["val/loss"]
    settings = group(runs)
    assert settings[0].values == {"optimizer.lr": "0.001", "placement.name": "attention"}  # of the largest loss
    lines = summary_table(settings)
    assert not any("over the best" in line for line in lines)
    assert "bits/byte" in shown_columns(lines, baselines=2)
    assert "bits/byte" not in shown_columns(lines, baselines=1)


def test_the_interval_of_a_single_run_is_shown(runs):
    for _, content in runs:
        content["metrics"] |= {"val/gap_closed": 0.5, "val/gap_closed_low": 0.4, "val/gap_closed_high": 0.6}
    alone, together = summary_table(group(runs[:1]))[0], summary_table(group(runs))[0]
    assert cell(alone, "gap closed") == "0.5000 (0.4000 - 0.6000)"
    assert cell(together, "gap closed") == "0.5000"
    assert cell({"trained": 0.0}, "trained") == "0"


def test_one_seed_has_no_margin(runs):
    assert Setting({}, runs[:1]).margin("val/loss") is None


def test_the_table_compares_with_the_best_on_the_same_documents(runs):
    best, second, _ = summary_table(group(runs))
    assert "over the best" not in best
    assert second["over the best"] == pytest.approx(math.exp(1.95 - 1.75))
    assert second["over the best, low"] <= second["over the best"] <= second["over the best, high"]
    assert best["seeds"] == 2


def test_runs_that_did_not_finish_are_told(runs, tmp_path):
    broken = (tmp_path, result("mlp", 1e-3, 2, 0.0, "oom"))
    line = summary_table(group([*runs, broken]))[0]
    assert line["not finished"] == "oom" and line["seeds"] == 2
    (only,) = summary_table(group([broken]))
    assert only["not finished"] == "oom" and "loss" not in only


def test_the_last_loss_of_a_failed_run_does_not_count(runs, tmp_path):
    failed = {**result("mlp", 1e-3, 2, 0.5), "status": "failed"}  # it had been scored before it failed
    best = group([*runs, (tmp_path, failed)])[0]
    assert best.metric("val/loss") == [1.7, 1.8] and best.unfinished == ["failed"]
    (only,) = group([(tmp_path, failed)])
    assert only.mean("val/loss") is None


def test_other_data_is_not_compared(runs):
    (runs[0][0] / "documents.json").write_text(json.dumps({"val/": [(1.0, 3)]}))
    lines = summary_table(group(runs))
    assert "over the best" not in lines[-1] and "over the best" in lines[1]


def test_of_equal_configs_the_newest_is_taken(runs):
    folder, content = runs[0]
    assert newest([runs[0], (folder / "old", content), runs[1]]) == runs[:2]


@pytest.mark.drawn
def test_a_summary_is_written(runs, tmp_path, capsys):
    sweep = tmp_path / "sweep"
    (sweep / "jobs").mkdir(parents=True)
    for index, (folder, _) in enumerate([*runs, runs[0]]):
        (sweep / "jobs" / f"{index:05d}").write_text(str(folder))
    assert sweep_runs(sweep) == [folder for folder, _ in runs]
    summarise(sweep, {"tracking": {"name": "none"}, "output_dir": str(tmp_path)})
    written = json.loads((sweep / "summary.json").read_text())
    assert written["untouched"] == {"random on text": 3.0} and written["failed"] == []
    best = written["each at its best learning rate"]
    assert [(line["placement.name"], line["optimizer.lr"]) for line in best] == [
        ("mlp", "0.001"),
        ("attention", "0.003"),
    ]
    rows = list(csv.DictReader((sweep / "summary.csv").open()))
    assert len(rows) == 6 and rows[0]["placement.name"] == "attention" and rows[0]["val/loss"] == "2.0"
    assert (sweep / "loss_by_trainable.png").stat().st_size > 1000
    assert not (sweep / "loss_by_train_s.png").exists()  # all took the same
    printed = capsys.readouterr().out
    assert "untouched random on" in printed and printed.rstrip().endswith(str(sweep))


def test_a_sweep_ends_with_its_summary(small, tmp_path, capsys):
    launch(train.job, "config", ["-m", *small("placement=attention,feed_forward", "placement.rank=4")])
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    paths = sweep_runs(sweep)
    assert [read_result(path)["config"]["placement"]["name"] for path in paths] == ["attention", "feed_forward"]
    lines = json.loads((sweep / "summary.json").read_text())["the sweep, by validation loss"]
    assert {line["placement.name"] for line in lines} == {"attention", "feed_forward"}
    assert capsys.readouterr().out.rstrip().endswith(str(sweep))


def test_a_job_starts_without_what_the_job_before_it_has_left(tmp_path):
    """A model and its trainer hold each other."""

    class Holder:
        pass

    seen = []

    def job(cfg, overrides):
        alive = [reference for reference in seen if reference() is not None]
        holder = Holder()
        holder.held = holder
        seen.append(weakref.ref(holder))
        return {"metrics": {"val/loss": float(len(alive))}}

    gc.disable()  # which would find it by chance
    try:
        losses = [
            sweep._attempt({"tracking": {"name": "none"}}, job, Job(tmp_path, number, []), "mark")
            for number in range(3)
        ]
    finally:
        gc.enable()
    assert losses == [0.0, 0.0, 0.0]
