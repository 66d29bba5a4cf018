"""Studies that take half a second: a random model of two layers on a generated text."""

import copy
import gc
import importlib.metadata
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

from tests.cover import mark_full_product

# Before torch is imported: the tests run one process per core, and tiny models gain nothing from more threads.
os.environ["OMP_NUM_THREADS"] = "1"
# Before Lightning is imported, which asks what is installed whenever it makes a trainer: a tenth of a small study.
importlib.metadata.entry_points = cache(importlib.metadata.entry_points)
importlib.metadata.version = cache(importlib.metadata.version)

ROOT = Path(__file__).resolve().parent.parent


@pytest.hookimpl(tryfirst=True)  # before cases are chosen by their markers
def pytest_collection_modifyitems(items):
    mark_full_product(items)


def pytest_collection_finish():
    """The libraries and the tests stay: the garbage collector need not look at them again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def text_path(tmp_path_factory) -> Path:
    """A text of sixty different documents."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    documents = [f"Paragraph {index}. " + " ".join(f"word{index * k}" for k in range(40)) for index in range(60)]
    file.write_text("\n\n".join(documents))
    return file


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory) -> Path:
    """A cache that the studies of all tests share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def interruptible():
    """Ctrl-C as in a foreground process: a shell that starts the tests in the background has it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_other_cache(monkeypatch, cache_dir):
    monkeypatch.setenv("GRAFTLAB_CACHE", str(cache_dir))


@pytest.fixture(scope="session", autouse=True)
def composed_once():
    """Hydra composes the options of groups once (0.1 s), and not for every config that chooses them.

    Where it does compose, it reads no file a second time that is as it was.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    import studies.config.compose
    from studies.config.composer import Composer

    def identity(stored):  # of the options that plugins have left
        return tuple((name, identity(item) if isinstance(item, dict) else id(item)) for name, item in stored.items())

    composers = {}

    def composer(config_name, start, loader):
        key = (config_name, tuple(start), identity(ConfigStore.instance().repo))
        kept = composers.setdefault(key, Composer(config_name, start, loader))
        kept.loader, kept._first, kept._bases, kept._line_errors, kept._known = loader, (), {}, {}, {}
        return kept  # with what Hydra composed and listed alone

    load = OmegaConf.load
    parsed = cache(lambda text: load(io.StringIO(text)))

    def load_once(file):
        return copy.deepcopy(parsed(file.read() if hasattr(file, "read") else Path(file).read_text(encoding="utf-8")))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies.config.compose, "Composer", composer)
        patch.setattr(OmegaConf, "load", staticmethod(load_once))
        yield


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Figures are empty files, but for those that fixtures of a wider scope draw, and with `@pytest.mark.drawn`.

    To draw them takes a third of a small study.
    """
    from matplotlib.figure import Figure

    if not request.node.get_closest_marker("drawn"):
        monkeypatch.setattr(Figure, "savefig", lambda self, file, **options: Path(file).touch())


@pytest.fixture(scope="session")
def small_in(text_path):
    """Overrides of a small study in an output folder; what is added replaces what was given before."""

    def overrides(output_dir: Path, *more: str) -> list[str]:
        lines = [
            "model=random",
            "dataset=text",
            f"dataset.path={text_path}",
            "dataset.block_size=32",
            "dataset.val_size=4",
            "dataset.test_size=4",
            "trainer=cpu",
            "trainer.enable_progress_bar=false",
            "trainer.max_steps=4",
            "trainer.val_check_interval=2",
            "trainer.log_every_n_steps=1",
            "samples.max_new_tokens=0",
            "tracking=none",
            f"output_dir={output_dir}",
            *more,
        ]
        given = {line.split("=")[0]: line for line in lines}
        if given["dataset"] != "dataset=text":
            del given["dataset.path"]
        return list(given.values())

    return overrides


@pytest.fixture
def small(small_in, tmp_path):
    """Overrides of a small study under `tmp_path / "outputs"`."""
    return lambda *more: small_in(tmp_path / "outputs", *more)


@pytest.fixture
def run(small, tmp_path):
    """Run a small study with these overrides. Returns its folder."""
    import train

    def run(*more: str) -> Path:
        result = train.run(train.compose(small(*more)))
        files = (tmp_path / "outputs" / "runs").glob("*/result.json")
        (folder,) = [file.parent for file in files if json.loads(file.read_text())["heartbeat"] == result["heartbeat"]]
        return folder

    return run


@pytest.fixture(scope="session")
def run_once(small_in, cache_dir, tmp_path_factory):
    """As `run`, but a study that was run with the same overrides is not run again: leave its folder as it is."""
    import train

    @cache
    def run_once(*more: str) -> Path:
        output_dir = tmp_path_factory.mktemp("once")
        train.run(train.compose(small_in(output_dir, *more)))
        (folder,) = (output_dir / "runs").iterdir()
        return folder

    return run_once


@pytest.fixture(scope="session")
def in_forks():
    """Send requests to the fork server, of `tests/fork_server.py`. Returns what became of each, as `subprocess.run`."""
    server = None

    def in_forks(*requests: dict) -> list[subprocess.CompletedProcess]:
        nonlocal server
        server = server or subprocess.Popen(
            [sys.executable, "-P", str(ROOT / "tests" / "fork_server.py")],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with tempfile.TemporaryDirectory() as printed:
            sent = []
            for number, request in enumerate(requests):
                files = {name: f"{printed}/{name}{number}" for name in ("output", "errors")}
                sent.append({**request, **files, "environment": {**os.environ, **request.get("environment", {})}})
            print(json.dumps(sent), file=server.stdin, flush=True)
            codes = json.loads(server.stdout.readline())
            return [
                subprocess.CompletedProcess(
                    request, code, Path(request["output"]).read_text(), Path(request["errors"]).read_text()
                )
                for request, code in zip(sent, codes, strict=True)
            ]

    yield in_forks
    if server:
        server.stdin.close()
        server.wait()


@pytest.fixture
def here(tmp_path):
    """The empty folder in which commands are started."""
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


@pytest.fixture
def command(here):
    """Run an entry point as a user does, in the folder `here`."""

    def command(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(ROOT / script), *arguments],
            cwd=here,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=280,
        )

    return command


@pytest.fixture
def forked(here, in_forks):
    """As `command`, in a fork of a process that has the libraries imported."""

    def forked(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        request = {"script": str(ROOT / script), "arguments": arguments}
        return in_forks({**request, "folder": str(here), "environment": environment})[0]

    return forked


@pytest.fixture
def two_forks(here, in_forks):
    """As `forked`, in two forks that have the environment that torchrun gives to its processes."""

    def two_forks(script: str, *arguments: str) -> subprocess.CompletedProcess:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        request = {"script": str(ROOT / script), "arguments": arguments, "folder": str(here)}
        places = [{**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
        first, second = in_forks(*({**request, "environment": place} for place in places))
        code = first.returncode or second.returncode
        return subprocess.CompletedProcess(request, code, first.stdout + second.stdout, first.stderr + second.stderr)

    return two_forks
