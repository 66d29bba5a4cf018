import json

import pytest

from registries import UserError
from studies.tools.layer_effects import layer_scores, main, rank_correlation

LAYERS = range(4)
EFFECTS = [0.4, 0.1, 0.2, 0.3]


@pytest.fixture
def outputs(tmp_path):
    """Runs of LoRA on one layer each, and one whose scores order the layers as the effects do."""

    def write(name, placement, rows, scores, loss):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        experiment = "placement_layers" if placement["name"] != "importance" else "placement_scores"
        config = {"model": {"name": "random"}, "placement": placement, "experiment": {"name": experiment}}
        result = {"status": "finished", "config": config, "dataset": {"sha256": "x"}, "baseline": {"loss": 2.0}}
        (folder / "result.json").write_text(json.dumps(result | {"metrics": {"val/loss": loss}}))
        (folder / "placement.json").write_text(json.dumps({"rows": rows, "scores": scores}))
        return folder

    for layer in LAYERS:
        write(f"layer{layer}", {"name": "all_linear"}, [{"layer": layer}], [], 2.0 - EFFECTS[layer])
    scores = [{"layer": layer, "score": EFFECTS[layer]} for layer in LAYERS for _ in range(2)]
    write("scores", {"name": "importance", "score": "gradient"}, [{"layer": 0}], scores, 1.5)
    return tmp_path


def test_scores_of_a_layer_add_up(outputs):
    assert layer_scores(outputs / "runs" / "scores") == pytest.approx({layer: 2 * EFFECTS[layer] for layer in LAYERS})


def test_the_rank_correlation_is_spearmans():
    effects = dict(enumerate(EFFECTS))
    assert rank_correlation(effects, effects) == pytest.approx(1)
    assert rank_correlation({layer: -effect for layer, effect in effects.items()}, effects) == pytest.approx(-1)


@pytest.mark.drawn
def test_the_command_prints_and_plots(outputs, capsys):
    main(str(outputs / "figure.png"), str(outputs))
    assert "gradient" in (printed := capsys.readouterr().out) and "+1.00" in printed
    assert (outputs / "figure.png").stat().st_size > 1000


def test_nothing_to_compare(tmp_path, outputs):
    with pytest.raises(UserError, match="usage"):
        main("figure.png")
    with pytest.raises(UserError, match="no finished run of placement_layers"):
        main("figure.png", str(tmp_path / "empty"))
