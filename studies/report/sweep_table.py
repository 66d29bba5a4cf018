"""The settings of a sweep: means and margins over seeds, and which is best by how much."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from registries.registry import UserError
from studies.report.spread import Spread
from studies.run.ratios import CONFIDENCE, ppl_ratio
from studies.run.results import DONE

ANSWERED = ("text", "states", "nothing", "shuffled", "random")  # what questions were asked after
# Title -> metric of the table's columns; those that no run has are left out.
COLUMNS = {
    "loss": "val/loss",
    "perplexity": "val/ppl",
    "bits/byte": "val/bpb",
    "loss over entropy": "val/over_entropy",
    "over untouched": "val/ppl_ratio",
    "over the control": "val/ppl_ratio_control",
    "over scratch": "val/ppl_ratio_scratch",
    "test loss": "test/loss",
    "gap closed": "val/gap_closed",
    "R2": "val/r2",
    "CKA": "val/cka",
    "tokens in one": "compression/ratio",
    "loss, text": "control/text/val/loss",
    "loss, last tokens": "control/truncated/val/loss",
    "loss, nothing": "control/nothing/val/loss",
    **{f"right, {name}": f"communication/{name}/accuracy" for name in ANSWERED},
    "train tokens": "train/tokens",
    "trained": "params/trainable",
    "train s": "time/train_s",
    "eval s": "time/eval_s",
    "tokens/s": "throughput/train_tokens_per_s",
    "MB": "memory/peak_mb",
}
WITH_INTERVAL = ("gap closed", "right, states")
LEARNING_RATE = "optimizer.lr"
Run = tuple[Path, Mapping[str, Any]]  # a run's folder and the content of its `result.json`


@dataclass
class Setting:
    """Runs that differ in their seed alone.

    Attributes:
        values: what this setting has of the keys that vary in the sweep, as text.
        runs: finished runs.
        unfinished: status of the runs that did not finish.
    """

    values: dict[str, str]
    runs: list[Run] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)

    def metric(self, name: str) -> list[float]:
        """The metric of every finished run that has it."""
        return [result["metrics"][name] for _, result in self.runs if name in result["metrics"]]

    def mean(self, name: str) -> float | None:
        """Mean over seeds."""
        values = self.metric(name)
        return fmean(values) if values else None

    def margin(self, name: str) -> float | None:
        """Half the 95 % confidence interval of the mean over seeds, by Student's t; None for one seed."""
        from scipy.stats import t

        values = self.metric(name)
        if len(values) < 2:
            return None
        return t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))

    def label(self) -> str:
        """What this setting has of the keys that vary, as a name for it."""
        return ", ".join(_named(key, value) for key, value in self.values.items() if value) or "all"


def _named(key: str, value: str) -> str:
    name = key.rpartition(".")[2]
    return value if name == "name" or "." not in key else f"{name}={value}"


def newest(runs: Iterable[Run]) -> list[Run]:
    """The newest run of each config; the runs are given newest first."""
    from studies.run.relevant_config import relevant

    by_config: dict[str, Run] = {}
    for run in runs:
        by_config.setdefault(json.dumps(relevant(run[1]["config"]), sort_keys=True), run)
    return list(by_config.values())


def flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a run's result, flat; the stages of its recovery under `recovery`, by name."""
    from studies.config.flat import flatten
    from studies.run.relevant_config import relevant

    kept = relevant(config)
    return flatten(kept) | ({"recovery": " + ".join(kept["recovery"]) or "none"} if "recovery" in kept else {})


def varied_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys of flat configs in which two that have the key differ.

    Without those that only follow from the option that was chosen for their group (`adapter=lora` has another rate than
    `adapter=linear`), unless an option was tried with several values.
    """
    values, by_option = defaultdict(set), defaultdict(set)
    for config in configs:
        for key, value in config.items():
            values[key].add(str(value))
            by_option[key, str(config.get(f"{key.split('.')[0]}.name"))].add(str(value))
    chosen = {key for (key, _), seen in by_option.items() if len(seen) > 1 or key.endswith(".name")}
    return sorted(key for key, seen in values.items() if len(seen) > 1 and (key in chosen or "." not in key))


def group(runs: Sequence[Run]) -> list[Setting]:
    """The settings of a sweep, best first: by mean validation loss, or bits per byte where tokens are not the same."""
    configs = [flat_config(result["config"]) for _, result in runs]
    keys = [key for key in varied_keys(configs) if key != "seed"]
    settings: dict[tuple[str, ...], Setting] = {}
    for (path, result), config in zip(runs, configs, strict=True):
        values = {key: str(config.get(key, "")) for key in keys}
        setting = settings.setdefault(tuple(values.values()), Setting(values))
        if result["status"] in DONE:
            setting.runs.append((path, result))
        else:
            setting.unfinished.append(result["status"])
    metric = compared_by(runs)
    value = lambda setting: setting.mean(metric)  # noqa: E731
    return sorted(settings.values(), key=lambda setting: math.inf if value(setting) is None else value(setting))


def compared_by(runs: Sequence[Run]) -> str:
    """The metric that compares runs: losses per token do not where tokens are not the same, bits per byte do."""
    counts = {json.dumps(_scored_text(result)) for _, result in runs}
    return "val/loss" if len(counts) == 1 or not all(_has(run, "val/bpb") for run in runs) else "val/bpb"


def _scored_text(result: Mapping[str, Any]) -> Any:
    """Blocks, tokens and bytes of a run's validation text, which are the same for the same text and tokenizer."""
    return result["dataset"].get("validation")


def _has(run: Run, metric: str) -> bool:
    """Whether a run has a metric, or did not come so far."""
    return metric in run[1]["metrics"] or run[1]["status"] not in DONE


def summary_table(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """A line for each setting: its values, seeds, means and margins, and the ratio of its perplexity to the best's."""
    best = next((setting for setting in settings if setting.runs), None)
    metric = compared_by([run for setting in settings for run in setting.runs])
    spread, lines = spread_of(settings, metric), []
    equal = len({setting.mean("train/tokens") for setting in settings if setting.runs}) == 1
    for setting in settings:
        line = dict(setting.values) | {"seeds": len(setting.runs)}
        if setting.unfinished:
            line["not finished"] = ", ".join(setting.unfinished)
        for title, name in {**COLUMNS, **_groups(settings)}.items():
            if setting.mean(name) is not None and not (name == "train/tokens" and equal):
                line[title] = setting.mean(name)
                if name.endswith("loss") and setting.margin(name) is not None:
                    line[f"{title} +-"] = setting.margin(name)
                if title in WITH_INTERVAL and len(setting.runs) == 1:  # over documents, or questions
                    for end in ("low", "high"):
                        line |= {f"{title}, {end}": value for value in setting.metric(f"{name}_{end}")}
        if setting.runs and best is not setting:
            line |= _over(setting, best)
            if spread is not None and setting.metric(metric) and best.metric(metric):
                told = spread.tells_apart(setting.metric(metric), best.metric(metric))
                line["from the best"] = "told apart" if told else "not told apart"
        lines.append(line)
    return lines


def _groups(settings: Sequence[Setting]) -> dict[str, str]:
    """Title -> metric of the losses of groups of positions."""
    names = dict.fromkeys(name for setting in settings for _, result in setting.runs for name in result["metrics"])
    return {f"loss, {words(name)}": name for name in names if name.startswith("val/loss_")}


def words(metric: str) -> str:
    """`val/loss_positions_256_511` -> `256-511`; other groups by their name."""
    name = metric.removeprefix("val/loss_")
    return re.sub(r"positions_(\d+)_(\d+)", r"\1-\2", name).replace("_", " ")


def spread_of(settings: Sequence[Setting], metric: str) -> Spread | None:
    """The spread over seeds of a metric in a sweep; None where no setting has two seeds."""
    return Spread.of([setting.metric(metric) for setting in settings])


def by_everything_but(key: str, lines: Sequence[Mapping[str, Any]]) -> dict[tuple, list[Mapping[str, Any]]]:
    """Lines by all that they vary in, except for one key; in order."""
    varied = [name for name in (lines[0] if lines else ()) if "." in name and name != key]
    by_rest = defaultdict(list)
    if lines and key in lines[0]:
        for line in lines:
            by_rest[tuple(line[name] for name in varied)].append(line)
    return by_rest


def _over(setting: Setting, best: Setting) -> dict[str, float]:
    """The ratio of perplexities on the same documents, with its interval; nothing where they differ."""
    if _scored_text(setting.runs[0][1]) != _scored_text(best.runs[0][1]):
        return {}
    try:
        ratio = ppl_ratio(_documents(setting), _documents(best))
    except UserError:  # other data: they do not compare
        return {}
    return {"over the best": ratio.value, "over the best, low": ratio.low, "over the best, high": ratio.high}


def _documents(setting: Setting) -> list[tuple[float, int]]:
    """The documents' validation scores, averaged over seeds."""
    from studies.run.document_scores import read_documents

    by_seed = [read_documents(path, "val/") for path, _ in setting.runs]
    if len({tuple(count for _, count in documents) for documents in by_seed}) > 1:
        raise UserError("the seeds were not scored on the same documents")
    return [(fmean(nll for nll, _ in document), document[0][1]) for document in zip(*by_seed, strict=True)]


def untouched_losses(runs: Sequence[Run]) -> dict[str, float]:
    """Label -> validation loss of the untouched models of a sweep, with the keys by which their texts differ."""
    configs = [flat_config(result["config"]) for _, result in runs]
    differ = len({json.dumps(_scored_text(result)) for _, result in runs}) > 1
    keys = [key for key in varied_keys(configs) if differ and key.startswith("dataset.") and key != "dataset.name"]
    losses = {}
    for (_, result), config in zip(runs, configs, strict=True):
        if "loss" in result["baseline"]:
            label = f"{result['config']['model']['name']} on {result['dataset']['name']}"
            values = [_named(key, str(config[key])) for key in keys if key in config]
            losses[", ".join([label, *values])] = result["baseline"]["loss"]
    return losses
