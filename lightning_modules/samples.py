"""Continuations of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from data_modules.encoding import encode_prompt


@torch.no_grad()
def continue_texts(
    model: nn.Module, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int, start: int | None = None
) -> list[str]:
    """What the model writes after each prompt, by greedy decoding; all prompts in one left-padded batch.

    Args:
        start: the token that the model is given before every text; None: none.
    """
    rows = [encode_prompt(tokenizer, prompt, start) for prompt in prompts]
    longest, pad = max(map(len, rows)), tokenizer.eos_token_id or 0
    input_ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    was_training = model.training
    model.eval()
    output = model.generate(
        input_ids=input_ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad
    )
    model.train(was_training)
    return [tokenizer.decode(row[longest:], skip_special_tokens=True) for row in output]
