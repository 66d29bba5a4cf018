"""Every benchmark runs, in its smallest setting, and prints numbers. What they measure is not judged here."""

import re
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SMALLEST = {
    "attention_cost": ["--lengths", "16"],
    "attention_memory": ["--lengths", "32", "--depths", "2"],
    "cached_training": ["model=tiny_phi", "dataset.block_size=16", "--layers", "2", "--blocks", "1", "--rounds", "1"],
    "lora_overhead": ["model=tiny_phi", "--steps", "8", "--batch", "1", "--length", "16"],
    "memory": ["--shape", "small", "--layers", "first:1", "--length", "16", "--checkpointing", "--chunk", "8"],
}


@pytest.fixture
def printed(monkeypatch, capsys):
    """What a benchmark prints, by its name."""

    def run(name):
        monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])  # as python does for a script
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *SMALLEST[name]])
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_each_benchmark_is_tried():
    assert {file.stem for file in BENCHMARKS.glob("*.py")} == set(SMALLEST)


@pytest.mark.parametrize("name", SMALLEST)
def test_it_prints_numbers(name, printed):
    assert re.findall(r"\d+\.\d+", printed(name).split("torch")[-1])


def test_training_from_the_cache_ends_with_the_same_weights(printed):
    assert float(printed("cached_training").splitlines()[-1].split()[6]) < 1e-5
