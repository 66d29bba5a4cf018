"""What makes a comparison of runs unfair, or its order a claim that the runs do not carry."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from registries.registry import UserError
from studies.report.compared_runs import ComparedRuns, option_of
from studies.report.sweep_table import LEARNING_RATE, by_everything_but, spread_of
from studies.run.results import read_result

EQUAL = 0.01  # relative difference of a budget that counts as none
BUDGETS = {"train/tokens": "training tokens", "params/trainable": "trained parameters"}
WITH_CONTROLS = ("replacement", "expansion")


def unfinished(compared: ComparedRuns) -> Iterator[str]:
    """Runs that are not there."""
    missing = len(compared.runs) - len(compared.finished)
    if missing:
        yield f"{missing} of {len(compared.runs)} runs did not finish: the table is of the others"


def unequal_budgets(compared: ComparedRuns) -> Iterator[str]:
    """Settings that were given more than others."""
    for metric, noun in BUDGETS.items():
        means = [mean for setting in compared.measured if (mean := setting.mean(metric))]
        if means and max(means) > min(means) * (1 + EQUAL):
            yield f"unequal {noun}: {min(means):,.0f} to {max(means):,.0f}; a difference may come from these alone"


def seeds(compared: ComparedRuns) -> Iterator[str]:
    """Too few seeds, unequally many, or seeds that change nothing."""
    counts = {len(setting.runs) for setting in compared.measured}
    if counts == {1} and len(compared.measured) > 1:
        yield "one seed for each setting: how much seeds differ is not known (seed=0,1,2 tells)"
    elif len(counts) > 1:
        yield f"settings have {min(counts)} to {max(counts)} seeds: the intervals of the one are wider than the others'"
    for setting in compared.measured:
        values = setting.metric(compared.metric)
        if len(values) > 1 and len(set(values)) == 1 and any(result.get("stages") for _, result in setting.runs):
            yield f"all seeds of a setting give the same {compared.metric}: the seed has no effect ({setting.label()})"


def order_not_told_apart(compared: ComparedRuns) -> Iterator[str]:
    """A best setting that the seeds do not tell from the next."""
    spread = spread_of(compared.settings, compared.metric)
    if spread is None or len(compared.measured) < 2:
        return
    best, *others = compared.measured
    like = [
        setting
        for setting in others
        if not spread.tells_apart(best.metric(compared.metric), setting.metric(compared.metric))
    ]
    if like:
        yield (
            f"the best setting ({best.label()}) is not told apart from {len(like)} of the {len(others)} others, such "
            f"as {like[0].label()}: their order is not known"
        )


def other_data(compared: ComparedRuns) -> Iterator[str]:
    """Texts that differ although the configs ask for the same, or tokens that do not compare."""
    if compared.metric == "val/bpb":
        yield "the runs have different tokens: they are compared by bits per byte, and not by loss"
    hashes = defaultdict(set)
    for _, result in compared.finished:
        asked = {key: result["config"].get(key) for key in ("dataset", "tokenizer", "model")}
        asked["start"] = result["dataset"].get("start_token")
        hashes[json.dumps(asked, sort_keys=True)].add(result["dataset"].get("sha256"))
    if any(len(values) > 1 for values in hashes.values()):
        yield "runs that ask for the same text have different data (sha256): the text has changed between them"


def other_code(compared: ComparedRuns) -> Iterator[str]:
    """Runs of different versions, or on different machines."""
    versions = defaultdict(set)
    for _, result in compared.finished:
        for name, version in result.get("versions", {}).items():
            versions[name].add(version)
    component = {key for key in compared.varied if key.endswith(".name")}
    for name, values in versions.items():
        if len(values) > 1 and not (name == "graftlab" and component):
            yield f"runs of different versions of {name} are compared: {', '.join(sorted(values))}"
    machines = {
        json.dumps(result["hardware"], sort_keys=True) for _, result in compared.finished if "hardware" in result
    }
    if len(machines) > 1:
        yield f"the runs were made on {len(machines)} different machines or numbers of threads: times do not compare"


def other_baselines(compared: ComparedRuns) -> Iterator[str]:
    """Untouched models that should be the same and score differently."""
    scores = defaultdict(set)
    for _, result in compared.finished:
        if "loss" in result["baseline"] and result["config"]["model"].get("freeze", True):
            key = [result["config"]["model"], result["dataset"].get("sha256"), result["config"]["trainer"]["precision"]]
            scores[json.dumps(key, sort_keys=True)].add(result["baseline"]["loss"])
    if any(max(values) - min(values) > 1e-6 * max(values) for values in scores.values()):
        yield "the same untouched model has different losses on the same data: baselines of other code or machines"


def controls(compared: ComparedRuns) -> Iterator[str]:
    """Controls that are missing, gone, or of other data or code."""
    without = [result for _, result in compared.finished if _lacks_controls(result)]
    if without:
        yield (
            f"controls are missing in {len(without)} of {len(compared.finished)} runs: what the same training does "
            "without the operation is not known (controls=[original,...])"
        )
    problems = {}
    for path, result in compared.finished:
        for name, folder in result.get("controls", {}).items():
            problem = _problem_of_control(path.parent / folder, result)
            if problem:
                problems.setdefault(f"the control {name!r} {problem}", path.name)
    yield from (f"{problem} (of run {run})" for problem, run in problems.items())


def _lacks_controls(result: Mapping[str, Any]) -> bool:
    config = result["config"]
    if any(option_of(config, key) not in ("none", "standard") for key in WITH_CONTROLS):
        return not result.get("controls") and config.get("expansion", {}).get("mode") not in ("original", "scratch")
    two_models = any(option_of(config, key) != "none" for key in ("adapter", "compressor"))
    return two_models and not any(name.startswith("control/") for name in result["metrics"])


def _problem_of_control(folder: Any, result: Mapping[str, Any]) -> str | None:
    if not (folder / "result.json").is_file():
        return f"is gone: {folder.name}"
    try:
        control = read_result(folder)
    except UserError:
        return f"cannot be read: {folder.name}"
    if control["dataset"].get("sha256") != result["dataset"].get("sha256"):
        return f"was scored on other data: {folder.name}"
    if control.get("versions") != result.get("versions"):
        return f"is of other code: {folder.name}"
    return None


def not_repeated(compared: ComparedRuns) -> Iterator[str]:
    """Runs that compute the same, and do not give the same."""
    losses = defaultdict(set)
    for _, result in compared.finished:
        losses[result.get("fingerprint")].add(result["metrics"].get("val/loss"))
    if any(len(values) > 1 for mark, values in losses.items() if mark is not None):
        yield "runs of the same config, data and code gave different losses: they are not reproducible"


def rate_at_the_edge(compared: ComparedRuns) -> Iterator[str]:
    """A best learning rate beyond which none was tried."""
    if LEARNING_RATE not in compared.varied:
        return
    lines = [dict(setting.values) for setting in compared.measured]
    rates = sorted({float(line[LEARNING_RATE]) for line in lines if line.get(LEARNING_RATE)})
    best = [group[0] for group in by_everything_but(LEARNING_RATE, lines).values() if len(group) > 1]
    at_edge = [line for line in best if float(line[LEARNING_RATE]) in (rates[0], rates[-1])]
    if len(rates) > 1 and at_edge:
        yield (
            f"the best learning rate is the lowest or the highest that was tried in {len(at_edge)} of {len(best)} "
            f"cases ({rates[0]:g} to {rates[-1]:g}): a better one may lie beyond"
        )


COMPARISON_CHECKS = (
    unfinished,
    unequal_budgets,
    seeds,
    order_not_told_apart,
    other_data,
    other_code,
    other_baselines,
    controls,
    not_repeated,
    rate_at_the_edge,
)
