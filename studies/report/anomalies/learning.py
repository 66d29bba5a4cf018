"""Runs that did not learn what their numbers seem to say. Checks as in `numbers`."""

from __future__ import annotations

import math
from pathlib import Path

from studies.report.anomalies.numbers import Anomalies, Result
from studies.report.compared_runs import option_of
from studies.run.curves import read_curves

RISE = 0.01  # of a loss, that counts
MANY_UNKNOWN = 0.1


def loss_that_rose(path: Path, result: Result) -> Anomalies:
    """Training that made the model worse, or worse again after its best."""
    metrics = result["metrics"]
    before = next((name for name in ("swap/loss", "baseline/loss") if name in metrics), None)
    if any(option_of(result["config"], group) != "none" for group in ("adapter", "compressor")):
        before = None  # the untouched target is not what was trained
    if result.get("stages") and before and metrics.get("val/loss", 0.0) > metrics[before] * (1 + RISE):
        yield "training made the loss higher", f"{before} {metrics[before]:.4f}, val/loss {metrics['val/loss']:.4f}"
    for name, points in read_curves(path).items():
        losses = [loss for _, loss in points if math.isfinite(loss)]
        if name == "val/loss" and losses and losses[-1] > min(losses) * (1 + RISE):
            yield "a validation loss rose again", f"{min(losses):.4f} at its best, {losses[-1]:.4f} at the last"


def learned_the_commonest(path: Path, result: Result) -> Anomalies:
    """Accuracy that always guessing the commonest token has too, and perplexity of unknown words."""
    metrics = result["metrics"]
    majority, unknown = metrics.get("val/majority_accuracy"), metrics.get("val/unknown_rate", 0.0)
    if majority is not None and metrics.get("val/accuracy", 1.0) <= majority:
        yield "the accuracy is that of always guessing the commonest token", f"{majority:.4f}"
    if unknown > MANY_UNKNOWN:
        yield (
            "many words are unknown, so that the perplexity is that of a word that stands for many",
            f"{unknown:.1%} of the tokens; val/ppl_known leaves them out",
        )


def selected_on_test(path: Path, result: Result) -> Anomalies:
    """Validation and test that are the same text."""
    metrics = result["metrics"]
    if "val/loss" in metrics and metrics["val/loss"] == metrics.get("test/loss"):
        yield "validation and test are the same text, so what was selected was selected on test", "equal losses"


LEARNING_CHECKS = (loss_that_rose, learned_the_commonest, selected_on_test)
