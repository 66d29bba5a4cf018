"""What a sweep costs beside its jobs: the seconds between the end of a job and the start of the next one.

python benchmarks/sweep_overhead.py [--jobs 12]

The jobs are real and small, tracked in MLflow's store; they run one after the other in this process.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import statistics
import tempfile
import time
from typing import Any

import train
from studies.config.launch import launch

SMALL = (
    "model=random",
    "model.num_layers=2",
    "model.hidden_size=32",
    "model.num_heads=2",
    "dataset.block_size=32",
    "dataset.train_size=64",
    "dataset.val_size=8",
    "dataset.test_size=8",
    "samples.max_new_tokens=0",
    "trainer.max_steps=2",
    "trainer.enable_progress_bar=false",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=12)
    jobs = parser.parse_args().jobs
    times: list[tuple[float, float]] = []
    run = train.run

    def timed(cfg: Any, overrides: Any = ()) -> dict[str, Any]:
        start = time.perf_counter()
        result = run(cfg, overrides)
        times.append((start, time.perf_counter()))
        return result

    train.run = timed
    seeds = f"seed={','.join(map(str, range(jobs)))}"
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        launch(train.job, "config", ["-m", f"output_dir={folder}", *SMALL, seeds])
    between = [start - end for (_, end), (start, _) in itertools.pairwise(times)]
    inside = [end - start for start, end in times[1:]]
    print(f"{jobs} jobs; after the first, a job took {statistics.median(inside):.2f} s (median)")
    print(f"between two jobs: {statistics.median(between):.3f} s (median), {max(between):.3f} s at most")


if __name__ == "__main__":
    main()
