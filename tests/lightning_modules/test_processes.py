"""What the processes of a data-parallel run share; with two of them in `TWO`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_modules.processes import from_first, is_first, process_count, require_processes
from registries import UserError

ROOT = Path(__file__).resolve().parents[2]

TWO = """
import os
from pathlib import Path
from lightning_modules.processes import from_first, is_first, process_count
from registries import UserError

def fail():
    raise UserError("told to all")

rank = int(os.environ["RANK"])
found = [process_count(), is_first(), from_first(lambda: ("from", rank))]
found.append(from_first(lambda: from_first(lambda: rank) + 7))  # within it, there is only the first
try:
    from_first(fail)
except UserError as error:
    found.append(str(error))
found.append(from_first(lambda: rank))  # they still go together
Path(__file__).with_name(f"{rank}.txt").write_text(repr(found))
"""


def test_a_single_process_is_the_first():
    assert process_count() == 1
    assert is_first()
    assert from_first(lambda: 3) == 3


@pytest.fixture
def by_torchrun(tmp_path):
    """Run a script in two processes that torchrun starts."""

    def start(script):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(torchrun, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)

    return start


@pytest.mark.parametrize("started", ["two_forks", pytest.param("by_torchrun", marks=pytest.mark.full_product)])
def test_two_processes_have_what_the_first_one_found(started, tmp_path, request):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    done = request.getfixturevalue(started)(script)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        expected = [2, rank == 0, ("from", 0), 7, "told to all", 0]
        assert (tmp_path / f"{rank}.txt").read_text() == repr(expected)


def test_devices_without_processes(monkeypatch):
    require_processes(1)
    with pytest.raises(UserError, match="trainer.devices=2 needs as many processes, and there are 1: start it as"):
        require_processes(2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match="there are 3"):
        require_processes(2)
