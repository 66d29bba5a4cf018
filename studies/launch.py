"""What both entry points do before and around Hydra."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from registries.registry import UserError

USAGE_STATUS = 2


def launch(run: Callable[[Any], Any], config_name: str, arguments: Sequence[str] | None = None) -> None:
    """Check the command line, then let Hydra run the job or the sweep; user errors end the process with status 2."""
    import hydra
    from hydra._internal.utils import get_args_parser

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = get_args_parser().parse_args(arguments)
    only_shows = options.help or options.hydra_help or options.cfg or options.info
    try:
        if only_shows:
            from studies.compose import load_plugins

            overrides = [*options.overrides, *load_plugins(options.overrides)]
        else:
            from studies.compose import check_command_line

            overrides, sweeping = check_command_line(options.overrides, options.multirun, config_name)
            if sweeping and not options.multirun:
                arguments.append("--multirun")
    except UserError as error:
        exit_with(error)
    for line in options.overrides:
        arguments.remove(line)
    sys.argv = [sys.argv[0], *overrides, *arguments]
    conf = str(Path(__file__).resolve().parent.parent / "conf")

    @hydra.main(config_path=conf, config_name=config_name, version_base="1.3")
    def job(cfg: Any) -> Any:
        return run(cfg)

    job()


def exit_with(error: UserError) -> None:
    """Print what is wrong, one line each, and end with the status for wrong usage."""
    count = len(error.messages)
    heading = "error:" if count == 1 else f"{count} errors:"
    print("\n".join([heading, *(f"  {message}" for message in error.messages)]), file=sys.stderr)
    sys.exit(USAGE_STATUS)
