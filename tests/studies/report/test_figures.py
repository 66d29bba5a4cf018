"""What is drawn on which axis."""

from matplotlib.figure import Figure

from studies.report.figures import plot_losses


def drawn(monkeypatch, curves, levels, tmp_path):
    """Unit of a panel -> names of its curves and levels."""
    panels = {}

    def look(figure, file, **kwargs):
        panels.update({axes.get_ylabel(): axes.get_legend_handles_labels()[1] for axes in figure.axes})

    monkeypatch.setattr(Figure, "savefig", look)
    plot_losses(curves, levels, tmp_path / "loss.png")
    return panels


def test_every_kind_of_loss_has_its_own_panel(monkeypatch, tmp_path):
    names = ["transfer/loss", "block_wise/loss", "adapter/loss", "kl/loss", "loss"]
    curves = {f"train/{name}": [(0, 1.0), (1, 0.5)] for name in names} | {"val/loss": [(1, 2.0)], "train/lora/loss": []}
    assert drawn(monkeypatch, curves, {"baseline": 2.0}, tmp_path) == {
        "relative output error": ["train/transfer/loss"],
        "relative error of states": ["train/block_wise/loss"],
        "adapter's objective": ["train/adapter/loss"],
        "nats per token": ["train/kl/loss", "train/loss", "val/loss", "baseline"],
    }


def test_levels_are_shown_where_nothing_was_trained(monkeypatch, tmp_path):
    assert drawn(monkeypatch, {}, {"baseline": 2.0}, tmp_path) == {"nats per token": ["baseline"]}
