"""Each anomaly, put into results by hand, is named; results that are right in everything have none."""

import json
import math

import pytest

from studies.report.anomalies import anomalies
from studies.report.compared_runs import by_text
from studies.report.selection import select
from tests.studies.report.made_runs import BASELINE, made_sweep


def lines(output_dir):
    (part,) = by_text(select(output_dir).runs)
    return anomalies(part)


def first(results):
    return results[2, 0]


def set_metric(name, value):
    def change(results):
        first(results)["metrics"][name] = value

    return change


def all_runs(change):
    def changed(results):
        for key, result in results.items():
            if key != "control":
                change(key, result)

    return changed


def set_all(name, value):
    return all_runs(lambda key, result: result["metrics"].update({name: value(key) if callable(value) else value}))


def no_second_seed(results):
    for key in [key for key in results if key != "control" and key[1] > 0]:
        del results[key]


def set_of_first(*keys, value):
    def change(results):
        part = first(results)
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value

    return change


def remove_controls(key, result):
    result["controls"] = {}


def close(results):
    """The two depths differ by less than their seeds."""
    for seed in range(3):
        metrics = results[4, seed]["metrics"]
        loss = results[2, seed]["metrics"]["val/loss"] + 0.001
        scores = {"loss": loss, "ppl": math.exp(loss), "bpb": loss / 4 / math.log(2)}
        scores |= {"ppl_ratio": math.exp(loss - BASELINE), "ppl_ratio_control": math.exp(loss - 2.8)}
        metrics.update({f"val/{name}": value for name, value in scores.items()})


def other_control(*keys, value):
    def change(results):
        part = results["control"]
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value

    return change


def same_loss(results):
    for seed in (1, 2):
        results[2, seed]["metrics"] = dict(first(results)["metrics"])


def same_fingerprint(results):
    results[2, 1]["fingerprint"] = results[2, 0]["fingerprint"]


def rates(results):
    for (depth, _), result in ((key, result) for key, result in results.items() if key != "control"):
        result["config"]["optimizer"]["lr"] = depth * 1e-3
        result["config"]["replacement"]["depth"] = 2


CASES = {
    "perplexity is not exp(loss)": set_metric("baseline/ppl", 20.0),
    "ratio of perplexities": set_metric("val/ppl_ratio", 1.0),
    "bits per byte do not fit": set_metric("baseline/bpb", 1.5),
    "not finite": set_metric("test/loss", math.inf),
    "without a validation loss": lambda results: first(results)["metrics"].pop("val/loss"),
    "a share is not between": set_metric("val/accuracy", 1.2),
    "a loss is below 0": set_metric("kl/loss", -0.1),
    "below the entropy": set_metric("val/over_entropy", 0.9),
    "more parameters were trained": set_metric("params/total", 32),
    "params/trainable is not what": set_metric("params/trainable", 64.5),
    "contrastive loss is at chance": set_metric("val/contrastive_over_chance", 0.999),
    "a similarity is at chance": lambda results: first(results)["metrics"].update(
        {"val/cka": 0.1, "val/cka_chance": 0.2}
    ),
    "retrieval is at chance": set_metric("val/retrieval_at_1", 0.002),
    "preflight check did not pass": set_of_first("preflight", "causality", "passed", value=False),
    "was not checked": set_of_first("config", "preflight", value=False),
    "the data gave a warning": set_of_first("dataset", "warnings", value=["it is short"]),
    "made the loss higher": set_metric("swap/loss", 2.5),
    "commonest token": set_metric("val/majority_accuracy", 0.4),
    "many words are unknown": set_metric("val/unknown_rate", 0.3),
    "selected on test": lambda results: first(results)["metrics"].update({"test/loss": 3.0, "test/ppl": math.exp(3.0)}),
    "did not finish": set_of_first("status", value="oom"),
    "unequal training tokens": set_all("train/tokens", lambda key: key[0] * 1000),
    "unequal trained parameters": all_runs(
        lambda key, result: (
            result["metrics"].update({"params/trainable": 8 * key[0]}),
            result["stages"]["next_token"].update(trained={"core.weight": [8, key[0]]}),
        )
    ),
    "one seed for each setting": no_second_seed,
    "settings have 2 to 3 seeds": lambda results: results.pop((2, 0)),
    "the seed has no effect": same_loss,
    "is not told apart from": close,
    "have different data": set_of_first("dataset", "sha256", value="f" * 16),
    "different versions of torch": set_of_first("versions", "torch", value="2.12.0"),
    "different machines": set_of_first("hardware", "threads", value=1),
    "different losses on the same data": set_of_first("baseline", "loss", value=2.95),
    "controls are missing": all_runs(remove_controls),
    "is gone": set_of_first("controls", value={"original": "nowhere"}),
    "scored on other data": other_control("dataset", "sha256", value="f" * 16),
    "is of other code": other_control("versions", "graftlab", value="old"),
    "not reproducible": same_fingerprint,
    "best learning rate is the lowest": rates,
}


def test_right_results_have_none(tmp_path):
    made_sweep(tmp_path)
    assert lines(tmp_path) == []


@pytest.mark.parametrize("part", CASES)
def test_an_anomaly_is_named(part, tmp_path):
    made_sweep(tmp_path, CASES[part])
    named = lines(tmp_path)
    assert any(part in line for line in named), named


def test_a_placement_is_compared_with_what_was_trained(tmp_path):
    def train_lora(results):
        first(results)["stages"]["next_token"]["trained"] = {"q.lora_A.weight": [8, 8]}

    made_sweep(tmp_path, train_lora)
    folder = select(tmp_path).runs[0][0]
    (folder / "placement.json").write_text(json.dumps({"rows": [{"parameters": 64}]}))
    assert lines(tmp_path) == []
    (folder / "placement.json").write_text(json.dumps({"rows": [{"parameters": 32}]}))
    (line,) = lines(tmp_path)
    assert "differ from the table" in line and "64 were trained, 32 were placed" in line


def test_a_curve_that_rose_again_is_named(tmp_path):
    made_sweep(tmp_path)
    folder = select(tmp_path).runs[0][0]
    (folder / "curves.jsonl").write_text(
        "".join(json.dumps({"step": step, "val/loss": loss}) + "\n" for step, loss in enumerate([4.0, 3.0, 3.2]))
    )
    (line,) = lines(tmp_path)
    assert "rose again" in line and folder.name in line


def test_what_many_runs_share_is_one_line(tmp_path):
    made_sweep(tmp_path, set_all("val/majority_accuracy", 0.5))
    (line,) = lines(tmp_path)
    assert "and 5 more of 6 runs" in line
