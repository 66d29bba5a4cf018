"""What all tools have in common that are started as `python -m <module>`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence

from registries.registry import UserError


def run_tool(main: Callable[..., None], help_text: str, arguments: Sequence[str] | None = None) -> None:
    """Call a tool's `main` with the arguments of the command line.

    A wrong number of arguments prints the usage, and what the user can mend its message; both end with status 2.

    Args:
        help_text: the tool's docstring, whose lines with `python -m` are its usage; all of it answers `--help`.
    """
    from studies.config.launch import exit_with

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments in (["-h"], ["--help"]):
        print(help_text.strip())
        return
    usage = [line.strip() for line in help_text.splitlines() if line.strip().startswith("python -m")]
    try:
        try:
            inspect.signature(main).bind(*arguments)
        except TypeError as error:
            raise UserError(f"usage: {line}" for line in usage) from error
        main(*arguments)
    except UserError as error:
        exit_with(error)
    except OSError as error:  # a file or folder that is not there, or cannot be written
        exit_with(UserError(f"{error.strerror or error}: {error.filename}" if error.filename else str(error)))
