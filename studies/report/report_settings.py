"""What a report is asked for on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from annotated_types import MinLen

from registries.registry import UserError, is_there, signature_errors

CHOICES = ("sweep", "experiment", "runs")


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """The keys of report.py; without any of the first three, a report is about the newest sweep.

    Attributes:
        sweep: a sweep's folder.
        experiment: the name of an experiment: its newest runs, whichever sweeps they are of.
        runs: folders of runs.
        output_dir: where the runs are; the report goes to its `reports/`.
    """

    sweep: Annotated[str, MinLen(1)] | None = None
    experiment: Annotated[str, MinLen(1)] | None = None
    runs: Annotated[list[str], MinLen(1)] | None = None
    output_dir: Annotated[str, MinLen(1)] = "outputs"

    @classmethod
    def read(cls, arguments: Sequence[str]) -> ReportSettings:
        """From `key=value` arguments, whose values are read as YAML.

        Raises:
            UserError: everything that is wrong with them.
        """
        keys = {**asdict(cls()), **_values(arguments)}
        errors = signature_errors(cls, keys, "the command")
        if errors:
            raise UserError(errors)
        settings = cls(**keys)
        chosen = [key for key in CHOICES if keys[key] is not None]
        if len(chosen) > 1:
            raise UserError(f"{' and '.join(chosen)} each say what the report is about: give one of them")
        if not is_there(settings.output_dir, folder=True):
            raise UserError(f"output_dir={settings.output_dir} is no folder: there are no runs in it")
        return settings


def _values(arguments: Sequence[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf

    values = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise UserError(f"{argument!r} is no setting: write key=value, such as sweep=<folder> (--help shows them)")
        try:
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]
        except Exception as error:  # of YAML, for which there is no one class
            raise UserError(f"{argument} cannot be read: {' '.join(str(error).split())}") from error
        values[key] = value if isinstance(value, list) or value is None else text
    return values
