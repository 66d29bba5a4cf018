"""EleutherAI's lm-evaluation-harness on a model of ours (extra `evaluation`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_modules.causal_lm import CausalLMModule
from registries.registry import UserError, nearest


def run_tasks(
    module: CausalLMModule,
    tasks: Sequence[str],
    task_path: str | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 1,
) -> dict[str, dict[str, float]]:
    """Score a model on tasks of the harness.

    Args:
        tasks: names of tasks.
        task_path: folder with task files of one's own (YAML, which may name local data); needs no network.
        limit: examples per task, None for all.
        num_fewshot: examples in the prompt, None for the task's own number.

    Returns:
        task -> metric -> value.

    Raises:
        UserError: the harness is not installed, or a task is not known or cannot be read.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            f"tasks={list(tasks)} need lm-evaluation-harness ({error}): pip install '.[evaluation]'"
        ) from error

    manager = TaskManager(include_path=None if task_path is None else str(Path(task_path).expanduser()))
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise UserError([f"unknown task {task!r}{nearest(task, manager.all_tasks)}" for task in unknown])
    model = HFLM(pretrained=module.model.eval(), tokenizer=module.tokenizer, batch_size=batch_size)
    try:
        results = simple_evaluate(
            model=model,
            tasks=list(tasks),
            task_manager=manager,
            num_fewshot=num_fewshot,
            limit=limit,
            bootstrap_iters=0,
        )
    except OSError as error:  # the task's data are neither here nor within reach
        raise UserError(
            f"tasks={list(tasks)}: {str(error).splitlines()[0]}; without network, give tasks with local data: task_path"
        ) from error
    return {task: _metrics(values) for task, values in results["results"].items()}


def _metrics(values: dict[str, Any]) -> dict[str, float]:
    """The harness names metrics `acc,none`: metric, filter."""
    numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
    return {key.removesuffix(",none"): value for key, value in numbers.items()}
