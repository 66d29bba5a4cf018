from pathlib import Path

import pytest

from studies.report.comparison_notes import comparison_notes
from studies.report.sweep_table import Setting, summary_table


def setting(name, losses, tokens=1000):
    def run(loss):
        metrics = {"val/loss": loss, "train/tokens": tokens}
        return Path("nowhere"), {"status": "finished", "metrics": metrics, "dataset": {"validation": name}}

    return Setting({"model.num_layers": name}, [run(loss) for loss in losses])


def test_settings_that_seeds_explain_are_not_told_apart(monkeypatch):
    monkeypatch.setattr("studies.report.sweep_table._over", lambda setting, best: {})
    monkeypatch.setattr("studies.report.sweep_table._scored_text", lambda result: "the same")
    settings = [setting("1", [1.0, 1.1]), setting("2", [1.02, 1.12]), setting("3", [2.0, 2.1])]
    table = summary_table(settings)
    assert [line.get("from the best") for line in table] == [None, "not told apart", "told apart"]
    assert "train tokens" not in table[0]
    (note,) = comparison_notes(settings)
    assert "0.071" in note and "3 degrees of freedom" in note and "2 seeds against 2" in note


def test_one_seed_claims_no_order(monkeypatch):
    monkeypatch.setattr("studies.report.sweep_table._over", lambda setting, best: {})
    settings = [setting("1", [1.0]), setting("2", [1.1])]
    assert "from the best" not in summary_table(settings)[1]
    assert "no order is claimed" in comparison_notes(settings)[0]
    assert comparison_notes(settings[:1]) == []


def test_unequal_budgets_are_told(monkeypatch):
    monkeypatch.setattr("studies.report.sweep_table._over", lambda setting, best: {})
    settings = [setting("1", [1.0], 1000), setting("2", [1.1], 2000)]
    assert [line["train tokens"] for line in summary_table(settings)] == [1000, 2000]
    assert "1,000 to 2,000" in comparison_notes(settings)[1]


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ({"model.num_layers": "4", "optimizer.lr": "0.5"}, "num_layers=4, lr=0.5"),
        ({"placement.name": "attention", "recovery": "kl"}, "attention, kl"),
        ({"model.num_layers": ""}, "all"),
    ],
)
def test_a_label_says_what_it_is(values, label):
    assert Setting(values).label() == label
