"""Lines of progress on stderr, results on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from rich.console import Console

from lightning_modules.stopping import stop_if_requested

# A file or a pipe has no width: wide enough for the table of a sweep.
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)
progress = Console(stderr=True, highlight=False, soft_wrap=True, width=None if sys.stderr.isatty() else 140)


def say(text: str) -> None:
    """One line of progress, on stderr, before a part of the work: here the process stops if it was asked to."""
    stop_if_requested()
    progress.print(text, markup=False)


@contextmanager
def only_results_on_stdout() -> Iterator[None]:
    """Within it, only what this module shows as a result goes to stdout; what libraries print there goes to stderr."""
    if console.file is not sys.stdout:
        yield
        return
    console.file = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        console.file = None


def show_folder(folder: Any) -> None:
    """The folder of a run or a sweep: the last line on stdout."""
    console.print(str(folder), markup=False)
