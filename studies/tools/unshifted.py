"""Where a famous wrong perplexity comes from: logits scored against the token that was read, not the next one.

python -m studies.tools.unshifted outputs/runs/<run> [more runs]

It prints, for the validation blocks of each run, perplexity as it is (position t predicts token t + 1) and what comes
out without the shift (position t against token t), for the untouched and for the trained model. The latter is a measure
of nothing: no language model is trained to repeat its input.
"""

from __future__ import annotations

from pathlib import Path

from registries.registry import UserError


def perplexities(model: object, loader: object) -> tuple[float, float]:
    """Perplexity of a model on a loader's scored tokens, and what comes out without the shift."""
    import torch
    from torch.nn.functional import cross_entropy

    from data_modules.batches import ModelInput, scored_labels
    from lightning_modules.nll import IGNORED, token_nll
    from lightning_modules.perplexity import perplexity

    shifted, unshifted, count, repeated = 0.0, 0.0, 0, 0
    with torch.no_grad():
        for batch in loader:
            labels = scored_labels(batch)
            logits = model(**ModelInput.of(batch).arguments, use_cache=False).logits.float()
            shifted += token_nll(logits, labels).sum().item()
            count += int((labels[:, 1:] != IGNORED).sum())
            unshifted += cross_entropy(
                logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
            ).item()
            repeated += int((labels != IGNORED).sum())
    return perplexity(shifted / count), perplexity(unshifted / repeated)


def main(*folders: str) -> None:
    """The command line."""
    import json

    import yaml

    from data_modules import build_data_module
    from lightning_modules import load_module
    from studies.report.printed_tables import show_rows

    if not folders:
        raise UserError("usage: python -m studies.tools.unshifted outputs/runs/<run> [more runs]")
    rows = []
    for folder in map(Path, folders):
        module = load_module(folder)
        cfg = yaml.safe_load((folder / "config.yaml").read_text())
        data = build_data_module(cfg, module.tokenizer)
        loss = json.loads((folder / "result.json").read_text())["metrics"]["val/loss"]
        for label, model in (("untouched", module.original), (folder.name, module.model)):
            right, wrong = perplexities(model.eval(), data.val_dataloader())
            rows.append([label, f"{right:.2f}", f"{wrong:,.0f}", f"{loss:.4f}" if model is module.model else ""])
    show_rows(["model", "perplexity", "without the shift", "recorded loss"], rows)


if __name__ == "__main__":
    from studies.tools.command import run_tool

    run_tool(main, __doc__)
