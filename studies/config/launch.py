"""What both entry points do before and around Hydra."""

from __future__ import annotations

import atexit
import os
import sys
import tempfile
import traceback
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from lightning_modules.processes import is_first, process_count
from lightning_modules.stopping import Interrupted, stop_if_requested, stoppable
from registries.registry import UserError

USAGE_STATUS = 2
TRACEBACKS = "HYDRA_FULL_ERROR"  # the variable that asks for them


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
    from hydra._internal.utils import get_args_parser

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = get_args_parser().parse_intermixed_args(arguments)  # flags may stand anywhere
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its warnings are about calls that are ours
    try:
        lines, flags = _checked(options, config_name, arguments)
        if options.config_path is not None:  # of two, the last counts
            flags += ["--config-path", str(_config_folder(options))]
    except UserError as error:
        exit_with(error)
    except Exception as error:
        if wants_traceback():
            raise
        exit_with(UserError(f"this command line cannot be checked: {_summary(error)}"))
    for line in options.overrides:
        arguments.remove(line)
    _hand_to_hydra(run, config_name, [*lines, *arguments, *flags])


def _checked(options: Namespace, config_name: str, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides and the additional flags to hand to Hydra."""
    from studies.config.command_line import check_command_line
    from studies.config.overrides import read_lines
    from studies.config.plugin_options import load_plugins, without_search_path
    from studies.run.jobs import quoted

    _require_flags_that_fit(options)
    if options.shell_completion:
        return options.overrides, []
    if options.help or options.hydra_help or options.cfg or options.info:
        read_lines(options.overrides, errors := [])
        if errors:
            raise UserError(errors)
        return [*without_search_path(options.overrides), *load_plugins(options.overrides)], []
    folder = None if options.config_path is None else _config_folder(options)
    primary = options.config_name or config_name
    line = check_command_line(options.overrides, options.multirun, primary, folder, options.config_dir)
    if line.devices > 1 and process_count() == 1:
        _start_processes(line.devices, arguments)
    lines = list(line.overrides)
    if not is_first():
        lines.append(f"output_dir={_out_of_the_way()}")
    if line.sweeping and line.in_turn:
        # Hydra composes all jobs of a batch before the first one starts, 0.1 s each: they are checked already.
        lines.append("hydra.sweeper.max_batch_size=1")
    if line.sweeping:
        lines.append(f"hydra.callbacks.summary.jobs={'null' if line.jobs is None else line.jobs}")
        lines.append(f"hydra.callbacks.summary.keys=[{','.join(map(quoted, line.keys))}]")
    return lines, ["--multirun"] if line.sweeping and not options.multirun else []


def _config_folder(options: Namespace) -> Path:
    """The folder that `--config-path` names, from that of the entry point on."""
    return Path(sys.argv[0]).parent.joinpath(options.config_path).absolute()


def _require_flags_that_fit(options: Namespace) -> None:
    """Raise UserError where Hydra's flags exclude each other, or name what is not there."""
    modes = {"--run": options.run, "--multirun": options.multirun, "--cfg": options.cfg, "--info": options.info}
    modes["--shell-completion"] = options.shell_completion
    asked = [flag for flag, value in modes.items() if value]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)} exclude each other: give one of them")
    if options.resolve and not (options.cfg or options.help):
        raise UserError("--resolve is for --cfg and --help: add --cfg job")
    if options.experimental_rerun:
        raise UserError("--experimental-rerun is not supported: resume=<folder of the run> goes on with a run")
    if options.config_dir is not None and not Path(options.config_dir).is_dir():
        raise UserError(f"--config-dir {options.config_dir} is no folder (looked from {Path.cwd()})")


def _hand_to_hydra(run: Callable[[Any], Any], config_name: str, arguments: Sequence[str]) -> None:
    """Run Hydra's main function. What it raises before a job has started is the command line's fault, and one line."""
    import hydra

    from registries.option import CONF

    begun = False

    @hydra.main(config_path=str(CONF), config_name=config_name, version_base="1.3")
    def job(cfg: Any) -> Any:
        nonlocal begun
        begun = True
        try:
            return run(cfg)
        except Exception:
            stop_if_requested()  # a library may have made this error of the signal
            raise

    plainly = wants_traceback()
    os.environ[TRACEBACKS] = "1"  # else Hydra prints a traceback itself, and ends the process
    sys.argv = [sys.argv[0], *arguments]
    try:
        _with_new_starts(job)
    except Exception as error:
        if plainly:
            raise
        if not begun and not _sweep_has_begun():
            exit_with(UserError(_summary(error)))
        traceback.print_exception(type(error), error, _below_hydra(error.__traceback__))
        sys.exit(1)
    finally:
        os.environ.pop(TRACEBACKS, None) if not plainly else None


def _with_new_starts(job: Callable[[], Any]) -> None:
    """Start Hydra; a sweep that breaks off because processes of its jobs were lost is started again in its folder."""
    from studies.run.jobs import quoted

    while True:
        try:
            job()
            return
        except Exception:
            folder = sys.modules["studies.sweep"].sweep_to_go_on_with() if _sweep_has_begun() else None
            if folder is None:
                raise
            flags = next((place for place, text in enumerate(sys.argv) if text.startswith("-")), len(sys.argv))
            sys.argv.insert(flags, f"hydra.sweep.dir={quoted(str(folder))}")  # of two, the last counts


def _sweep_has_begun() -> bool:
    """Whether this process has started the jobs of a sweep."""
    return "studies.sweep" in sys.modules and bool(sys.modules["studies.sweep"].begun)


def wants_traceback() -> bool:
    """Whether the user asked for tracebacks, as Hydra's users do."""
    return os.environ.get(TRACEBACKS) == "1"


def _below_hydra(frames: TracebackType | None) -> TracebackType | None:
    """The frames of a job, without Hydra's above them."""
    frame = frames
    while frame is not None:
        if frame.tb_frame.f_code.co_name == "run_job":
            return frame.tb_next
        frame = frame.tb_next
    return frames


def _summary(error: BaseException) -> str:
    """An error of a library on one line, with its causes where it does not tell them."""
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    cause = f": {_summary(error.__cause__)}" if error.__cause__ is not None else ""
    return f"{text or type(error).__name__}{cause} ({TRACEBACKS}=1 shows where)" if not cause else f"{text}{cause}"


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
