"""Score a finished run, or any model, on any dataset; or continue a text with it.

python score.py run=outputs/runs/<run> dataset=text dataset.path=notes.txt split=all
python score.py model=tiny_phi dataset=pydoc
python score.py run=outputs/runs/<run> 'prompt=The capital of France is'
python score.py run=outputs/runs/<run> 'tasks=[arc_easy]'
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def score(cfg: Any) -> dict[str, Any]:
    """Score what `cfg.run` or `cfg.model` names on `cfg.dataset` or `cfg.tasks`, or continue `cfg.prompt`.

    Returns:
        `loss`, `ppl`, `bpb`, `accuracy` and the tokens they were measured on; task -> metric -> value; or `text`, the
        continuation.
    """
    from data_modules import build_data_module
    from lightning_modules.load import load_language_model, load_module
    from lightning_modules.options import model_loader, plain
    from lightning_modules.training.trainer import evaluate
    from lightning_modules.two_models.bridge_assembly import require_data
    from lightning_modules.two_models.cross_model import require_one_model
    from studies.tools.harness import run_tasks

    cfg = plain(cfg)
    module = None
    if cfg["run"] is not None:
        module = load_module(Path(cfg["run"]))
        tokenizer = module.tokenizer
        if cfg["dataset"]["start_token"] == "auto":
            cfg["dataset"]["start_token"] = module.start_token  # as in the run
    else:
        source = model_loader(cfg)
        tokenizer = source.tokenizer()
    if cfg["prompt"] is not None:
        module = module or load_language_model(cfg, source, tokenizer)
        (text,) = module.continue_texts([cfg["prompt"]], cfg["samples"]["max_new_tokens"])
        return {"prompt": cfg["prompt"], "text": text}
    if cfg["tasks"]:
        module = module or load_language_model(cfg, source, tokenizer)
        require_one_model(module, "a task of the harness")
        options = {key: cfg[key] for key in ("task_path", "limit", "num_fewshot")}
        return run_tasks(module, cfg["tasks"], **options, batch_size=cfg["dataset"]["batch_size"])
    data = build_data_module(cfg, tokenizer)
    module = module or load_language_model(cfg, source, tokenizer)
    require_data(module, data)
    module.measure(data.token_bytes, data.position_groups())
    if cfg["run"] is not None:
        _warn_of_trained_texts(Path(cfg["run"]), cfg)
    scores = evaluate(module, data.loader(cfg["split"]), cfg["trainer"])
    tokens = sum(count for _, count in module.documents.compute())
    scored = {"split": cfg["split"], "blocks": len(data.blocks(cfg["split"])), "tokens": tokens}
    return {**scores, "dataset": data.name, "sha256": data.sha256(cfg["split"]), **scored}


def _warn_of_trained_texts(run: Path, cfg: dict[str, Any]) -> None:
    """Tell where a run that trained something is scored on documents that it was trained on."""
    from data_modules.trained_texts import warn_of_trained_texts
    from lightning_modules.saved_run import read_run

    trained, result = read_run(run)
    if result.get("stages"):
        warn_of_trained_texts(trained["dataset"], cfg["dataset"], cfg["split"])


def job(cfg: Any) -> float:
    """Print the scores, and nothing else, on stdout; in a sweep, return the loss."""
    import json
    import sys
    from contextlib import redirect_stdout

    from registries import UserError
    from studies.config.launch import exit_with

    try:
        with redirect_stdout(sys.stderr):  # whatever a library, a task or a conversion prints
            result = score(cfg)
    except UserError as error:
        exit_with(error)
    print(json.dumps(result, indent=2, ensure_ascii=False))
    return result.get("loss", 0.0)


if __name__ == "__main__":
    from studies.config.launch import launch

    launch(job, "score")
