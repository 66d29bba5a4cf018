"""A report on finished runs: the newest sweep, or what is named.

python report.py                            the newest sweep
python report.py sweep=<folder>             another one
python report.py experiment=<name>          the newest runs of an experiment, whichever sweeps they are of
python report.py 'runs=[<folder>,...]'      these runs
python report.py output_dir=<folder> ...    where the runs lie elsewhere

It writes <output_dir>/reports/<date>_<name>.md, the same as one HTML file, and an index of all reports.
"""

from __future__ import annotations

import sys
from pathlib import Path


def report(*arguments: str) -> Path:
    """Write the report that these arguments ask for (`studies.report.report_settings`). Returns the Markdown file.

    Raises:
        UserError: an argument is wrong, or there are no such runs.
    """
    from studies.report.report_settings import ReportSettings
    from studies.report.selection import select
    from studies.report.written_report import write_report

    settings = ReportSettings.read(arguments)
    output_dir = Path(settings.output_dir).expanduser()
    return write_report(select(output_dir, settings.sweep, settings.experiment, settings.runs), output_dir)


def main() -> None:
    """The command line: print the two files of the report."""
    from registries.registry import UserError
    from studies.config.launch import exit_with

    if {"--help", "-h"} & {*sys.argv}:
        print(__doc__)
        return
    try:
        file = report(*sys.argv[1:])
    except UserError as error:
        exit_with(error)
    print(file.with_name(f"{file.stem}.html"))
    print(file)


if __name__ == "__main__":
    main()
