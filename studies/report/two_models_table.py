"""What a study of two models prints."""

from __future__ import annotations

from collections.abc import Mapping

from studies.progress import console
from studies.report.printed_tables import interval_cells, new_table, number_cell


def show_crossing(metrics: Mapping[str, float]) -> None:
    """The table of a cross-model study: both models alone, every control, and the adapter, on the validation text."""
    columns = {
        "loss": "loss",
        "ppl": "perplexity",
        "bpb": "bits/byte",
        "gap_closed": "gap closed",
        "kl": "KL",
        "r2": "R2",
        "cosine": "cosine",
        "retrieval_at_1": "retrieval",
        "cka": "CKA",
    }
    names = [name.split("/")[1] for name in metrics if name.startswith("control/") and name.endswith("val/loss")]
    rows = {"source alone": "source/", "target alone": "target/", **{name: f"control/{name}/val/" for name in names}}
    layers = [name.split("/")[1] for name in metrics if name.startswith("val/layer_") and name.endswith("/loss")]
    rows["adapter" if not layers else "adapter, mean of the layers"] = "val/"
    rows |= {f"adapter, {layer.replace('_', ' ')}": f"val/{layer}/" for layer in layers}
    table = new_table("the target's validation text, read through the source", "states", columns.values())
    for label, prefix in rows.items():
        table.add_row(label, *(number_cell(metrics.get(f"{prefix}{name}")) for name in columns))
    console.print(table)
    if "communication/chance" not in metrics:
        return
    table = new_table("questions about what the source has read", "the target gets", ("right answers", "95 %"))
    for name in [name for name in metrics if name.startswith("communication/") and name.endswith("/accuracy")]:
        table.add_row(name.removeprefix("communication/").removesuffix("/accuracy"), *interval_cells(metrics, name))
    table.add_row("chance", number_cell(metrics["communication/chance"]), "")
    console.print(table)
