"""What a study of soft tokens prints."""

from __future__ import annotations

from collections.abc import Mapping

from studies.progress import console
from studies.report.printed_tables import new_table, number_cell


def show_compression(metrics: Mapping[str, float]) -> None:
    """The table of a compression study: the continuation after every form of the context, on the validation text."""
    columns = {"loss": "loss", "ppl": "perplexity", "bpb": "bits/byte", "gap_closed": "kept of the text"}
    forms = {
        "the text": "control/text/val/",
        "soft tokens": "val/",
        "as many tokens of its end": "control/truncated/val/",
        "nothing": "control/nothing/val/",
    }
    title = f"each soft token for {metrics['compression/ratio']:.1f} tokens"
    table = new_table(title, "continued after", columns.values())
    for label, prefix in forms.items():
        table.add_row(label, *(number_cell(metrics.get(f"{prefix}{name}")) for name in columns))
    console.print(table)
