"""Every benchmark runs, in its smallest setting, and prints numbers. What they measure is not judged here."""

import io
import re
import runpy
import sys
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SMALLEST = {
    "attention_cost": ["--lengths", "16"],
    "attention_memory": ["--lengths", "32", "--depths", "2"],
    "cached_training": ["model=tiny_phi", "dataset.block_size=16", "--layers", "2", "--blocks", "1", "--rounds", "1"],
    "lora_overhead": ["model=tiny_phi", "--steps", "8", "--batch", "1", "--length", "16"],
    "recurrent_training": ["--lengths", "4", "--batch", "2", "--steps", "1", "--layers", "1"],
    "sweep_overhead": ["--jobs", "2"],
    "memory": ["--shape", "small", "--layers", "first:1", "--length", "16", "--checkpointing", "--chunk", "8"],
}


@cache
def printed(name):
    """What a benchmark prints, by its name."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as output:
        patch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])  # as python does for a script
        patch.setattr(sys, "argv", [f"{name}.py", *SMALLEST[name]])
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    return output.getvalue()


def test_each_benchmark_is_tried():
    assert {file.stem for file in BENCHMARKS.glob("*.py")} == set(SMALLEST)


SECONDS_LONG = ("lora_overhead", "memory")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.full_product if name in SECONDS_LONG else ()) for name in SMALLEST],
)
def test_it_prints_numbers(name):
    assert re.findall(r"\d+\.\d+", printed(name).split("torch")[-1])


def test_training_from_the_cache_ends_with_the_same_weights():
    assert float(printed("cached_training").splitlines()[-1].split()[6]) < 1e-5
