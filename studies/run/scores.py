"""Scores of a model: measured in one way, recorded with their ratios, and cached for untouched models."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_modules.data_module import BlockDataModule
from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.processes import from_first
from registries.registry import UserError
from studies.run.document_scores import DOCUMENTS
from studies.run.files import make_folder, read_checked, write_checked
from studies.run.lifecycle import RunRecord
from studies.run.ratios import share_of_gap

log = logging.getLogger(__name__)

SPLIT_OF = {"": "validation", "test/": "test"}  # prefix of a metric's name -> the split it is measured on


@dataclass(frozen=True)
class Scores:
    """What `score` measures.

    Attributes:
        metrics: loss, ppl, accuracy, bpb and losses of position groups.
        documents: (summed nll in nats, scored tokens) per document.
        seconds: that scoring took.
        tokens_per_s: tokens scored per second.
    """

    metrics: dict[str, float]
    documents: list[tuple[float, int]]
    seconds: float
    tokens_per_s: float

    def record(self, record: RunRecord, prefix: str) -> None:
        """Record the metrics under a prefix, with the ratio of perplexities to the untouched model's."""
        baseline = "baseline/test/ppl" if "test/" in prefix else "baseline/ppl"
        metrics = {f"{prefix}{name}": value for name, value in self.metrics.items()}
        if baseline in record.metrics and not prefix.startswith("baseline/"):  # a resumed run knows it already
            metrics[f"{prefix}ppl_ratio"] = self.metrics["ppl"] / record.metrics[baseline]
        record.folder.record(**metrics)
        file = record.folder.path / DOCUMENTS
        try:
            recorded = read_checked(file) if file.is_file() else {}
        except UserError as error:
            print(f"{error}, or go on without what is not scored again")
            recorded = {}
        write_checked(file, recorded | {prefix: self.documents})


def record_share(record: RunRecord, prefix: str, scores: Scores, floor: Scores, ceiling: Scores) -> None:
    """Record scores, and as `gap_closed` the share that they close of the gap between two others, if there is one."""
    scores.record(record, prefix)
    share = share_of_gap(scores.documents, floor.documents, ceiling.documents)
    if share is not None:
        record.folder.record(**share.named(f"{prefix}gap_closed"))


def scoring(module: CausalLMModule, data: BlockDataModule, split: str) -> list[Any]:
    """What a score depends on beside the model: the blocks, how many pass at once, and what is reported apart."""
    groups = {name: [part.start, part.stop] for name, part in module.position_groups.items()}
    return [data.sha256(split), data.settings.batch_size, groups]


def cached_scores(cache_dir: str, key: list[Any], compute: Callable[[], Scores]) -> Scores:
    """The scores for this key, computed once."""
    return Scores(**cached_result(cache_dir, key, lambda: asdict(compute())))


def cached_result(cache_dir: str, key: list[Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `compute` gave for this key, which holds all that it depends on. A damaged entry is computed anew."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return from_first(lambda: _read_or_compute(Path(cache_dir).expanduser() / "scores" / f"{digest}.json", compute))


def _read_or_compute(file: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    if file.is_file():
        try:
            return read_checked(file, required=True)
        except UserError as error:
            log.warning("computing a score anew: %s", error.messages[0].partition(":")[0])
    value = compute()
    make_folder(file.parent)
    write_checked(file, value)
    return value
