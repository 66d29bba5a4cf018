"""EleutherAI's lm-evaluation-harness on a model of ours (extra `evaluation`)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers.processors import TemplateProcessing

from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.length_guard import length_limit
from registries.models.pretrained import lacks_memory
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
        UserError: the harness is not installed, or a task is not known, cannot be read or does not fit its data.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            f"tasks={list(tasks)} need lm-evaluation-harness ({error}): pip install '.[evaluation]'"
        ) from error

    if module.tokenizer.bos_token_id is None and module.tokenizer.eos_token_id is None:
        raise UserError(
            f"tasks={list(tasks)}: this model's tokenizer has neither a start nor an end token, and the harness begins "
            "texts with one: name one in its tokenizer_config.json (bos_token or eos_token)"
        )

    class Harnessed(HFLM):
        """A model whose texts begin with the token that it begins them with, once, and end where they end."""

        def loglikelihood_rolling(self, *arguments: Any, **options: Any) -> list[float]:
            self.add_bos_token = False  # the harness puts the token before a whole text itself
            try:
                return super().loglikelihood_rolling(*arguments, **options)
            finally:
                self.add_bos_token = None

    limit_of_model = length_limit(module.model)
    with _told(tasks):
        manager = TaskManager(include_path=None if task_path is None else str(Path(task_path).expanduser()))
        unknown = [task for task in tasks if task not in manager.all_tasks]
        if unknown:
            raise UserError([f"unknown task {task!r}{nearest(task, manager.all_tasks)}" for task in unknown])
        model = Harnessed(
            pretrained=module.model.eval(),
            tokenizer=_tokenizer(module),
            prefix_token_id=_first_token(module),
            batch_size=batch_size,
            max_length=None if limit_of_model is None else limit_of_model.tokens,
        )
        results = simple_evaluate(
            model=model,
            tasks=list(tasks),
            task_manager=manager,
            num_fewshot=num_fewshot,
            limit=limit,
            bootstrap_iters=0,
        )
    return {task: _metrics(values) for task, values in results["results"].items()}


@contextmanager
def _told(tasks: Sequence[str]) -> Iterator[None]:
    """Within this context, whatever a task's files and data make the harness raise is a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if lacks_memory(error):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if isinstance(error, OSError):  # the task's data are neither here nor within reach
            reason += "; without network, give tasks with local data: task_path"
        raise UserError(f"tasks={list(tasks)} cannot be scored: {reason}") from error


def _first_token(module: CausalLMModule) -> int:
    """What the harness puts before a text of which nothing is given: some token must predict its first one."""
    tokenizer = module.tokenizer
    candidates = (module.start, tokenizer.eos_token_id, tokenizer.bos_token_id)
    return next(token for token in candidates if token is not None)


def _tokenizer(module: CausalLMModule) -> Any:
    """A copy that puts the module's start token before a text, if it has one, and nothing else.

    It fills with a token that the model has; the harness would add one, also to the module's tokenizer.
    """
    tokenizer = copy.deepcopy(module.tokenizer)
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id)
    if tokenizer.is_fast:
        start = None if module.start is None else tokenizer.convert_ids_to_tokens(module.start)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="$A" if start is None else f"{start} $A", special_tokens=[(start, module.start)] if start else []
        )
    return tokenizer


def _metrics(values: dict[str, Any]) -> dict[str, float]:
    """The harness names metrics `acc,none`: metric, filter."""
    numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
    return {key.removesuffix(",none"): value for key, value in numbers.items()}
