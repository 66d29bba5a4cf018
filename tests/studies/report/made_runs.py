"""Folders of runs as a sweep leaves them, without a model: two depths of a replacement, three seeds, one control."""

import copy
import json
import math
from functools import cache

from lightning_modules.config import as_plain
from studies.config.compose import compose
from studies.run.files import write_checked

BYTES_OF_A_TOKEN = 4
DOCUMENTS = 6
LOSSES = {2: (3.00, 3.01, 3.02), 4: (3.30, 3.31, 3.32)}  # depth -> losses of three seeds
BASELINE, CONTROL = 2.9, 2.8
TYPED = ["replacement=toroidal", "controls=[original]"]


@cache
def config(*overrides):
    return as_plain(compose(["model=tiny_phi", *overrides]))


def made_result(loss, depth, seed, controls=True):
    """The result of a run that is right in everything."""
    typed = [*TYPED, f"replacement.depth={depth}", f"seed={seed}"]
    data = {"blocks": 100, "tokens": 1000, "scored": 990, "bytes": 990 * BYTES_OF_A_TOKEN}
    metrics = {**_scores("baseline/", BASELINE), **_scores("swap/", loss + 1), **_scores("val/", loss)}
    metrics |= _scores("test/", loss + 0.05)
    metrics |= {f"{split}/ppl_ratio": math.exp(loss - BASELINE) for split in ("val", "test")}
    if controls:
        metrics |= {f"control/original/val/{name}": value for name, value in _scores("", CONTROL).items()}
        metrics["val/ppl_ratio_control"] = math.exp(loss - CONTROL)
    metrics |= {"train/tokens": 5000, "params/trainable": 64, "params/total": 1000, "time/train_s": 10.0 + depth}
    metrics |= {"memory/peak_mb": 500.0, "throughput/train_tokens_per_s": 500.0}
    return {
        "status": "finished",
        "metrics": metrics,
        "baseline": {"loss": BASELINE},
        "config": copy.deepcopy(config(*typed)),
        "overrides": typed,
        "fingerprint": f"{depth}-{seed}-{controls}",
        "dataset": {"name": "pydoc", "sha256": "0123456789abcdef", "start_token": None, "warnings": []}
        | dict.fromkeys(("train", "validation", "test"), data),
        "versions": {"graftlab": "abc", "torch": "2.13.0"},
        "hardware": {"processor": "a processor", "cores": 2, "threads": 2, "memory_gb": 8.0, "gpu": None},
        "stages": {"next_token": {"steps": 5, "tokens": 5000, "trained": {"core.weight": [8, 8]}, "notes": []}},
        "preflight": {"causality": {"value": 0.0, "limit": 1e-5, "passed": True}},
        "controls": {"original": "control"} if controls else {},
        "mlflow_run_id": None,
    }


def _scores(prefix, loss):
    bits = loss / BYTES_OF_A_TOKEN / math.log(2)
    return {f"{prefix}loss": loss, f"{prefix}ppl": math.exp(loss), f"{prefix}bpb": bits, f"{prefix}accuracy": 0.3}


def write_run(folder, result, curve=(4.0, 3.5, 3.0)):
    """The folder of a run with this result."""
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    lines = [{"step": step, "time": 0.0, "val/loss": loss} for step, loss in enumerate(curve)]
    (folder / "curves.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    loss = result["metrics"].get("val/loss", 1.0)
    write_checked(folder / "documents.json", {"val/": [[loss * 10 + part, 10] for part in range(DOCUMENTS)]})
    sample = {"prompt": "Once upon", "before": " a time", "after": f" a <night>\nof {loss:.2f}"}
    (folder / "samples.json").write_text(json.dumps([sample]))


def made_sweep(output_dir, change=None):
    """An output folder with one sweep; `change` may change the results, by (depth, seed), before they are written."""
    results = {
        (depth, seed): made_result(loss, depth, seed)
        for depth, losses in LOSSES.items()
        for seed, loss in enumerate(losses)
    }
    control = made_result(CONTROL, 1, 0, controls=False)
    control["config"]["replacement"]["name"] = "standard"
    results["control"] = control
    if change is not None:
        change(results)
    sweep = output_dir / "sweeps" / "2026-01-02_03-04-05"
    (sweep / "jobs").mkdir(parents=True)
    write_run(output_dir / "runs" / "control", results.pop("control"))
    for number, ((depth, seed), result) in enumerate(results.items()):
        folder = output_dir / "runs" / f"2026-01-02_03-04-{number:02}_depth_{depth}_{seed}"
        write_run(folder, result)
        (sweep / "jobs" / f"{number:05}").write_text(str(folder))
    task = [*TYPED, "replacement.depth=2,4", "seed=0,1,2"]
    (sweep / "multirun.yaml").write_text(
        json.dumps({"hydra": {"overrides": {"task": task}}, "experiment": {"name": "none"}})
    )
    return sweep
