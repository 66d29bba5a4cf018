"""Score a finished run, or any model, on any dataset; continue a text with it, or talk to it.

python score.py run=outputs/runs/<run> dataset=text dataset.path=notes.txt split=all
python score.py model=tiny_phi dataset=pydoc
python score.py run=outputs/runs/<run> 'prompt=The capital of France is'
python score.py run=outputs/runs/<run> 'tasks=[arc_easy]'
python score.py run=outputs/runs/<run> chat=true
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def score(cfg: Any) -> dict[str, Any]:
    """Score what `cfg.run` or `cfg.model` names on `cfg.dataset` or `cfg.tasks`; continue `cfg.prompt`, or converse.

    Returns:
        `loss`, `ppl`, `bpb`, `accuracy` and the tokens they were measured on; task -> metric -> value; or `text`, the
        continuation. Nothing after a conversation.
    """
    from data_modules import build_data_module
    from lightning_modules.config import as_plain, read_config
    from lightning_modules.load import load_language_model, load_module
    from lightning_modules.saved_run import read_run
    from lightning_modules.training.trainer import evaluate
    from registries.option import read_section
    from studies.config.check import ScoreSettings
    from studies.tools.conversation import converse
    from studies.tools.harness import run_tasks

    plain = as_plain(cfg)
    asked, module = read_section(ScoreSettings, plain), None
    if asked.run is not None:
        module = load_module(Path(asked.run))
        tokenizer = module.tokenizer
        if plain["dataset"]["start_token"] == "auto":
            plain = {**plain, "dataset": {**plain["dataset"], "start_token": module.start_token}}  # as in the run
    cfg = read_config(plain)
    if module is None:
        loader = cfg.model_loader()
        tokenizer = cfg.tokenizer_of(loader)
    if asked.chat:
        module = module or load_language_model(cfg, loader, tokenizer)
        module.require_one_model("a conversation")
        of_run = cfg if asked.run is None else read_run(Path(asked.run))[0]
        converse(module, of_run.dataset, asked, cfg.seed)
        return {}
    if asked.prompt is not None:
        module = module or load_language_model(cfg, loader, tokenizer)
        (text,) = module.continue_texts([asked.prompt], cfg.samples.max_new_tokens)
        return {"prompt": asked.prompt, "text": text}
    if asked.tasks:
        module = module or load_language_model(cfg, loader, tokenizer)
        module.require_one_model("a task of the harness")
        options = {key: getattr(asked, key) for key in ("task_path", "limit", "num_fewshot")}
        return run_tasks(module, asked.tasks, **options, batch_size=cfg.dataset.batch_size)
    data = build_data_module(cfg.plain, tokenizer)
    module = module or load_language_model(cfg, loader, tokenizer)
    module.require_data(data)
    module.measure(data.token_bytes, data.position_groups(), data.unknown)
    if asked.run is not None:
        _warn_of_trained_texts(Path(asked.run), cfg, asked.split)
    scores = evaluate(module, data.loader(asked.split), cfg.trainer)
    tokens = sum(count for _, count in module.documents.compute())
    scored = {"split": asked.split, "blocks": len(data.blocks(asked.split)), "tokens": tokens}
    return {**scores, "dataset": data.name, "sha256": data.sha256(asked.split), **scored}


def _warn_of_trained_texts(run: Path, cfg: Any, split: str) -> None:
    """Tell where a run that trained something is scored on documents that it was trained on."""
    from data_modules.trained_texts import warn_of_trained_texts
    from lightning_modules.saved_run import read_run

    trained, result = read_run(run)
    if result.get("stages"):
        warn_of_trained_texts(trained.dataset, cfg.dataset, split)


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
    if result:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    return result.get("loss", 0.0)


if __name__ == "__main__":
    from studies.config.launch import launch

    launch(job, "score")
