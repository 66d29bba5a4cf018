"""What a reader should know before the numbers of a report: what does not fit, and what was not fair."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from studies.report.anomalies.fairness import COMPARISON_CHECKS
from studies.report.anomalies.learning import LEARNING_CHECKS
from studies.report.anomalies.numbers import NUMBER_CHECKS
from studies.report.compared_runs import ComparedRuns


def anomalies(compared: ComparedRuns) -> list[str]:
    """Everything that is strange about runs and their comparison, one line each."""
    return [*_of_runs(compared), *(line for check in COMPARISON_CHECKS for line in check(compared))]


def _of_runs(compared: ComparedRuns) -> Sequence[str]:
    """What is strange about single runs; what is strange about many alike is one line."""
    details = defaultdict(dict)
    for path, result in compared.finished:
        for check in (*NUMBER_CHECKS, *LEARNING_CHECKS):
            for kind, detail in check(path, result):
                details[kind].setdefault(path.name, detail)
    count = len(compared.finished)
    return [
        f"{kind}: {next(iter(by_run.values()))} (run {next(iter(by_run))}"
        + (f", and {len(by_run) - 1} more of {count} runs)" if len(by_run) > 1 else ")")
        for kind, by_run in details.items()
    ]
