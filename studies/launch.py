"""What both entry points do before and around Hydra."""

from __future__ import annotations

import atexit
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lightning_modules.processes import is_first, process_count
from lightning_modules.stopping import Interrupted, stop_if_requested, stoppable
from registries.registry import UserError

USAGE_STATUS = 2


def launch(run: Callable[[Any], Any], config_name: str, arguments: Sequence[str] | None = None) -> None:
    """Check the command line, then let Hydra run the job or the sweep.

    User errors end the process with status 2, Ctrl-C and SIGTERM with 130 and 143.
    """
    try:
        with stoppable():
            _launch(run, config_name, arguments)
            stop_if_requested()
    except (Interrupted, KeyboardInterrupt) as stop:
        print(str(stop) or "stopped by SIGINT", file=sys.stderr)
        sys.exit(stop.code if isinstance(stop, Interrupted) else 130)


def _launch(run: Callable[[Any], Any], config_name: str, arguments: Sequence[str] | None) -> None:
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

            overrides, sweeping, devices = check_command_line(options.overrides, options.multirun, config_name)
            if devices > 1 and process_count() == 1:
                _start_processes(devices, arguments)
            if not is_first():
                overrides.append(f"output_dir={_out_of_the_way()}")
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
        try:
            return run(cfg)
        except Exception:
            stop_if_requested()  # a library may have made this error of the signal
            raise

    job()


def _start_processes(count: int, arguments: Sequence[str]) -> NoReturn:
    """Go on as so many processes of the same command, by torchrun."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *torchrun, sys.argv[0], *arguments])


def _out_of_the_way() -> str:
    """What a process that keeps no records does: print nothing, and write to a folder that is gone with it."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return folder.name


def exit_with(error: UserError) -> None:
    """Print what is wrong, one line each, and end with the status for wrong usage."""
    stop_if_requested()  # a library may have made this error of the signal
    if not is_first():
        sys.exit(USAGE_STATUS)  # the first process tells it
    count = len(error.messages)
    heading = "error:" if count == 1 else f"{count} errors:"
    print("\n".join([heading, *(f"  {message}" for message in error.messages)]), file=sys.stderr)
    sys.exit(USAGE_STATUS)
