"""Numbers of a run that contradict each other, or that cannot be.

A check is a function of a run's folder and its result; it gives what is strange as (kind, detail) pairs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_modules.perplexity import perplexity
from studies.report.compared_runs import option_of

Result = Mapping[str, Any]
Anomalies = Iterator[tuple[str, str]]
ROUNDING = 1e-6  # relative
SCALED = 1e-3  # relative: of losses that one text has under one tokenizer, in bits per byte and nats per token
CHANCE_OF_RETRIEVAL = 0.002  # one of 500 rows
PLACEMENT = "placement.json"


def not_finite(path: Path, result: Result) -> Anomalies:
    """Numbers that are none."""
    for name, value in result["metrics"].items():
        if not math.isfinite(value):
            yield "a metric is not finite", f"{name} is {value}"


def without_score(path: Path, result: Result) -> Anomalies:
    """A run that finished and has no score."""
    if "val/loss" not in result["metrics"]:
        yield "a run finished without a validation loss", "it has no val/loss"


def perplexity_of_another_loss(path: Path, result: Result) -> Anomalies:
    """ppl = exp(loss)."""
    for prefix, metrics in _by_prefix(result["metrics"]).items():
        if {"loss", "ppl"} <= metrics.keys() and not _same(metrics["ppl"], perplexity(metrics["loss"])):
            expected = perplexity(metrics["loss"])
            yield "a perplexity is not exp(loss)", f"{prefix}ppl is {metrics['ppl']:.6g}, exp(loss) {expected:.6g}"


def ratio_of_other_perplexities(path: Path, result: Result) -> Anomalies:
    """ppl_ratio = ppl / ppl of the untouched model, or of the control."""
    metrics = result["metrics"]
    references = {"ppl_ratio": "baseline/", "ppl_ratio_control": "control/original/val/"}
    references |= {"ppl_ratio_standard": "control/standard/val/", "ppl_ratio_scratch": "control/scratch/val/"}
    for name, prefix in references.items():
        reference = metrics.get(f"{prefix}ppl")
        if f"val/{name}" in metrics and "val/ppl" in metrics and reference:
            expected = metrics["val/ppl"] / reference
            if not _same(metrics[f"val/{name}"], expected):
                yield (
                    "a ratio of perplexities is not that of the perplexities",
                    f"val/{name} is {metrics[f'val/{name}']:.6g}, val/ppl over {prefix}ppl {expected:.6g}",
                )


def bits_of_another_loss(path: Path, result: Result) -> Anomalies:
    """Bits per byte are the loss times a number that one text has under one tokenizer."""
    scored = _by_prefix(result["metrics"])
    factors = {
        prefix: scored[prefix]["bpb"] / scored[prefix]["loss"]
        for prefix in ("baseline/", "swap/", "val/")
        if {"bpb", "loss"} <= scored.get(prefix, {}).keys() and scored[prefix]["loss"]
    }
    if factors and max(factors.values()) - min(factors.values()) > SCALED * max(factors.values()):
        told = ", ".join(f"{prefix}bpb is {factor:.4g} of {prefix}loss" for prefix, factor in factors.items())
        yield "bits per byte do not fit the losses on the same text", told


def out_of_range(path: Path, result: Result) -> Anomalies:
    """Shares are between 0 and 1, losses at least 0, and at least the entropy of data that was made up."""
    for name, value in result["metrics"].items():
        last = name.rpartition("/")[2]
        if last in ("accuracy", "retrieval_at_1", "unknown_rate") and not 0 <= value <= 1:
            yield "a share is not between 0 and 1", f"{name} is {value:.6g}"
        elif last == "loss" and value < 0:
            yield "a loss is below 0", f"{name} is {value:.6g}"
        elif last == "over_entropy" and value < 1 - 0.02:
            yield "a loss is below the entropy of the data", f"{name} is {value:.6g}"


def parameters_of_another_table(path: Path, result: Result) -> Anomalies:
    """What was trained is what was placed, and no more than there is."""
    metrics = result["metrics"]
    trainable, total = metrics.get("params/trainable"), metrics.get("params/total")
    if trainable is not None and total is not None and trainable > total:
        yield "more parameters were trained than there are", f"{trainable:,.0f} of {total:,.0f}"
    shapes = {name: shape for stage in result.get("stages", {}).values() for name, shape in stage["trained"].items()}
    placed = _placed(path)
    trained = sum(math.prod(shape) for name, shape in shapes.items() if ".lora_" in name)
    if placed is not None and trained and placed != trained:
        yield (
            "the trained parameters differ from the table of what was placed",
            f"{trained:,} were trained, {placed:,} were placed",
        )
    all_trained = sum(map(math.prod, shapes.values()))
    if (
        trainable is not None
        and shapes
        and option_of(result["config"], "expansion") == "none"
        and all_trained != trainable
    ):
        yield (
            "params/trainable is not what the stages trained",
            f"params/trainable is {trainable:,.0f}, the stages trained {all_trained:,}",
        )


def at_chance(path: Path, result: Result) -> Anomalies:
    """Similarities and contrastive losses of two models that say no more than chance."""
    metrics = result["metrics"]
    contrastive = metrics.get("val/contrastive_over_chance")
    if contrastive is not None and contrastive > 0.98:
        yield "a contrastive loss is at chance", f"it is {contrastive:.3f} of ln(batch)"
    if {"val/cka", "val/cka_chance"} <= metrics.keys() and metrics["val/cka"] <= metrics["val/cka_chance"]:
        yield (
            "a similarity is at chance",
            f"val/cka is {metrics['val/cka']:.4f}, chance {metrics['val/cka_chance']:.4f}",
        )
    retrieval = metrics.get("val/retrieval_at_1")
    if retrieval is not None and retrieval <= 2 * CHANCE_OF_RETRIEVAL:
        yield "retrieval is at chance", f"val/retrieval_at_1 is {retrieval:.4f}, chance {CHANCE_OF_RETRIEVAL}"


def checks_that_failed(path: Path, result: Result) -> Anomalies:
    """Preflight checks that did not pass, or were turned off, and what was odd about the data."""
    for name, check in result.get("preflight", {}).items():
        if isinstance(check, Mapping) and check.get("passed") is False:
            yield "a preflight check did not pass", f"{name}"
    config = result["config"]
    replacement = option_of(config, "replacement")
    if replacement != "none" and not config["preflight"]:
        yield "a replacement was not checked (preflight=false)", replacement
    for warning in result["dataset"].get("warnings", []):
        yield "the data gave a warning", warning


NUMBER_CHECKS = (
    not_finite,
    without_score,
    perplexity_of_another_loss,
    ratio_of_other_perplexities,
    bits_of_another_loss,
    out_of_range,
    parameters_of_another_table,
    at_chance,
    checks_that_failed,
)


def _placed(path: Path) -> int | None:
    """The parameters in the table of a LoRA placement; None where there is none that can be read."""
    try:
        rows = json.loads((path / PLACEMENT).read_text())["rows"]
        return sum(row["parameters"] for row in rows)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _by_prefix(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """`val/` -> {`loss`: ...}."""
    grouped: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        prefix, slash, last = name.rpartition("/")
        grouped.setdefault(prefix + slash, {})[last] = value
    return grouped


def _same(value: float, expected: float) -> bool:
    return math.isclose(value, expected, rel_tol=ROUNDING) or (math.isnan(value) and math.isnan(expected))
