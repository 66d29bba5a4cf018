"""Continuations of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from data_modules.batches import positions_of
from data_modules.encoding import encode_prompt
from lightning_modules.length_guard import length_limit
from registries.registry import UserError


@torch.no_grad()
def continue_texts(
    model: nn.Module, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int, start: int | None = None
) -> list[str]:
    """What the model writes after each prompt, by greedy decoding; all prompts in one left-padded batch.

    A text ends with the tokenizer's end token, or where the model reads no longer ones.

    Args:
        start: the token that the model is given before every text; None: none.

    Raises:
        UserError: a prompt is longer than the model reads, or it is empty and there is no token to begin with.
    """
    rows = [encode_prompt(tokenizer, prompt, start) for prompt in prompts]
    limit = length_limit(model)
    _require_readable(rows, None if limit is None else limit.tokens)
    longest, pad = max(map(len, rows)), tokenizer.eos_token_id or 0
    input_ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    was_training = model.training
    model.eval()
    written = _most_likely(
        model, input_ids, mask, max_new_tokens, tokenizer.eos_token_id, None if limit is None else limit.tokens
    )
    model.train(was_training)
    return [tokenizer.decode(row, skip_special_tokens=True) for row in written]


def _require_readable(rows: Sequence[Sequence[int]], longest: int | None) -> None:
    if longest is not None and max(map(len, rows)) > longest:
        raise UserError(
            f"a prompt has {max(map(len, rows))} tokens, but this model reads at most {longest}: give shorter "
            "prompts (in a study samples.prompts; samples.max_new_tokens=0 asks for no samples)"
        )


def _most_likely(
    model: nn.Module, tokens: Tensor, mask: Tensor, steps: int, end: int | None, longest: int | None
) -> list[list[int]]:
    """The most likely tokens after each row, at most so many, without what follows a row's end.

    The rules are these alone: what a model's folder says about decoding (penalties, beams) is not followed.

    Args:
        tokens, mask: (batch, length), left-padded; 1 where there are tokens.
        longest: tokens that the model reads; None: any number.
    """
    lengths, cache = mask.sum(1), None
    room = torch.full_like(lengths, steps) if longest is None else (longest - lengths + 1).clamp(max=steps)
    written: list[list[int]] = [[] for _ in tokens]
    going = room > 0
    while going.any():
        positions = positions_of(mask) if longest is None else positions_of(mask).clamp(max=longest - 1)
        output = model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions[:, -tokens.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache, best = output.past_key_values, output.logits[:, -1].argmax(-1)
        for row in going.nonzero().flatten().tolist():
            written[row].append(int(best[row]))
            going[row] = written[row][-1] != end and len(written[row]) < room[row]
        tokens, mask = best[:, None], torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return written
