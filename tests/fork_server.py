"""A process that has the libraries imported, and does what it is asked to in forks of itself.

A start of Python with all of them takes seven seconds, and a fork none.

Each line of standard input is a list of requests as JSON, which are done at the same time; each line of standard output
the list of the exit codes that came of them. A request is either {"script": ..., "arguments": [...]}, a script to be
run as from a command line, or {"overrides": [...], "kill": ...}, a study to be run until a moment of
`tests.studies.kills`; and it holds the "folder", the "environment" and the files for "output" and "errors".
"""

import atexit
import gc
import json
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any


def import_libraries() -> None:
    """What any study needs."""
    import lightning  # noqa: F401
    import matplotlib.figure
    import torch
    import transformers.models.llama.modeling_llama
    import transformers.models.phi.modeling_phi  # noqa: F401

    import lightning_modules.load  # noqa: F401
    import studies.controls
    import studies.one_model
    import studies.two_models  # noqa: F401
    import train
    from lightning_modules.config import read_config
    from studies.run.fingerprint import fingerprint

    torch.set_num_threads(1)
    matplotlib.figure.Figure.savefig = lambda self, file, **options: Path(file).touch()
    fingerprint(read_config(train.compose(["model=random", "replacement=toroidal"])), "")  # reads the project's code
    gc.freeze()  # what stays is not copied into the forks by the garbage collector


def next_request() -> dict[str, Any] | None:
    """In a fork, what it is to do; in this process, None when there are no more requests."""
    for line in sys.stdin:
        children = []
        for request in json.loads(line):
            child = os.fork()
            if child == 0:
                return request
            children.append(child)
        print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children], flush=True)
    return None


def fulfil(request: dict[str, Any]) -> None:
    """Do it, as if this process had just been started."""
    for number, file in enumerate((os.devnull, request["output"], request["errors"])):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if "script" in request:
        sys.argv = [request["script"], *request["arguments"]]
        runpy.run_path(request["script"], run_name="__main__")
    else:
        import train
        from tests.studies.kills import KILLS

        KILLS[request["kill"]]()
        train.run(train.compose(request["overrides"]))


def exit_code(request: dict[str, Any]) -> int:
    """Do it, and tell with what exit code a process of its own would end."""
    try:
        fulfil(request)
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    import_libraries()
    asked = next_request()
    if asked is not None:
        os._exit(exit_code(asked))  # at once: to take the libraries down takes a second
