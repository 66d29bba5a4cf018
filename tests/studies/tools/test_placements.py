import json

import pytest

from registries import UserError
from studies.run.placement_table import read_placement
from studies.tools import placements


@pytest.mark.drawn
def test_the_table_is_recorded(run):
    folder = run("placement=query_value", "placement.rank=4")
    result, content = json.loads((folder / "result.json").read_text()), read_placement(folder)
    counts = {"attention.query": 0, "attention.value": 0}
    for row in content["rows"]:
        counts[row["role"]] += row["parameters"]
    assert content["parameters_by_role"] == counts
    assert sum(content["parameters_by_layer"].values()) == sum(counts.values()) == result["metrics"]["params/trainable"]
    assert {role: result["metrics"][f"params/{role}"] for role in counts} == counts
    assert result["metrics"]["params/lora"] == sum(counts.values())
    assert content["scores"] == []
    assert (folder / "figures" / "placement.png").stat().st_size > 1000
    assert not (folder / "figures" / "importance.png").exists()


@pytest.mark.drawn
def test_scores_are_recorded_with_a_heat_map(run):
    folder = run("placement=importance", "placement.budget=2000", "placement.rank=4", "placement.batches=2")
    content = read_placement(folder)
    scores = {each["module"]: each["score"] for each in content["scores"]}
    assert {row["module"] for row in content["rows"]} < scores.keys()
    assert sum(row["parameters"] for row in content["rows"]) <= 2000
    assert (folder / "figures" / "importance.png").stat().st_size > 1000


def test_lora_beside_a_replacement_is_told_apart(run):
    folder = run("replacement=toroidal", "placement=attention", "placement.rank=4", "replacement.transfer_steps=2")
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    assert 0 < metrics["params/lora"] < metrics["params/trainable"]


def test_the_command_prints_a_table_without_a_run(capsys):
    placements.main("model=dialogpt_medium", "placement=attention")
    printed = capsys.readouterr().out
    assert "2,359,296" in printed and "attention.qkv" in printed and "0-23" in printed


@pytest.mark.parametrize("options", [[], ["placement=importance", "placement.budget=50%"]])
def test_what_has_no_table(options):
    with pytest.raises(UserError, match="has no table before a run"):
        placements.main(*options)
