"""Runs that are compared with each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from studies.report.sweep_table import Run, Setting, compared_by, flat_config, group, varied_keys
from studies.run.results import DONE


@dataclass(frozen=True)
class ComparedRuns:
    """Runs on one text.

    Attributes:
        text: name of the dataset.
        runs: all of them, whatever became of them.
        settings: of these runs, best first.
        metric: by which they are compared.
        varied: keys of the config in which they differ.
        shared: key -> value, where all of them have the same.
    """

    text: str
    runs: Sequence[Run]
    settings: Sequence[Setting]
    metric: str
    varied: Sequence[str]
    shared: Mapping[str, Any]

    @classmethod
    def of(cls, text: str, runs: Sequence[Run]) -> ComparedRuns:
        """Compare these runs."""
        configs = [flat_config(result["config"]) for _, result in runs]
        shared = {
            key: value for key, value in configs[0].items() if all(config.get(key) == value for config in configs[1:])
        }
        return cls(text, runs, group(runs), compared_by(runs), varied_keys(configs), shared)

    @property
    def finished(self) -> list[Run]:
        """The runs that have finished."""
        return [run for run in self.runs if run[1]["status"] in DONE]

    @property
    def measured(self) -> list[Setting]:
        """The settings that have a run with the metric."""
        return [setting for setting in self.settings if setting.metric(self.metric)]


def option_of(config: Mapping[str, Any], group: str) -> str:
    """The option of a group that the configs of earlier versions may not have."""
    return config.get(group, {"name": "none"})["name"]


def by_text(runs: Iterable[Run]) -> list[ComparedRuns]:
    """The runs by the dataset that they were scored on: numbers on different texts say nothing about each other."""
    by_name = defaultdict(list)
    for path, result in runs:
        by_name[result["config"]["dataset"]["name"]].append((path, result))
    return [ComparedRuns.of(name, members) for name, members in sorted(by_name.items())]
