"""Studies that take half a second: a random model of two layers on a generated text."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cover import mark_full_product

# Before torch is imported: the tests run one process per core, and tiny models gain nothing from more threads.
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parent.parent


@pytest.hookimpl(tryfirst=True)  # before cases are chosen by their markers
def pytest_collection_modifyitems(items):
    mark_full_product(items)


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


@pytest.fixture
def command(tmp_path):
    """Run an entry point as a user does, in an empty folder `tmp_path / "here"`."""

    def command(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        here = tmp_path / "here"
        here.mkdir(exist_ok=True)
        return subprocess.run(
            [sys.executable, str(ROOT / script), *arguments],
            cwd=here,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return command
