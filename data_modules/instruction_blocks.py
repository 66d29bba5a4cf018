"""Examples -> blocks in which every example is read by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from data_modules.blocks import Blocks
from data_modules.encoding import encode_filled, encode_texts
from data_modules.instructions import Example, InstructionSettings, TooLong

IGNORED = -100  # label of a token that is not scored


@dataclass(frozen=True)
class Encoded:
    """Examples as tokens.

    Args:
        rows: (tokens, labels) of each example.
        counts: what happened to those that were too long: `dropped`, `cut prompts`, `cut responses`.
    """

    rows: list[tuple[list[int], list[int]]]
    counts: Counter


def encode(
    examples: Sequence[Example], tokenizer: Any, settings: InstructionSettings, block_size: int, start: int | None
) -> Encoded:
    """Start token, prompt, response and end token of each example, with the labels of what counts.

    Prompt and response are tokenised apart, as they are when a model continues the prompt. The first token of an
    example is never scored: what stands before it in a block is another example.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    prompts = encode_filled(tokenizer, [example.parts or (example.prompt,) for example in examples], start)
    responses = encode_texts(tokenizer, [example.response for example in examples])
    rows, counts = [], Counter()
    for prompt, response in zip(prompts, responses, strict=True):
        answer = [*response, *end]
        over = len(prompt) + len(answer) - block_size
        if over > 0:
            kept = _shortened(prompt, answer, over, settings.too_long, 0 if start is None else 1)
            if kept is None:
                counts["dropped"] += 1
                continue
            counts["cut prompts" if settings.too_long == "prompt" else "cut responses"] += 1
            prompt, answer = kept
        unscored = max(1, len(prompt)) if settings.loss_on == "response" else 1
        tokens = [*prompt, *answer]
        rows.append((tokens, [IGNORED] * unscored + tokens[unscored:]))
    return Encoded(rows, counts)


def _shortened(
    prompt: list[int], answer: list[int], over: int, how: TooLong, keep: int
) -> tuple[list[int], list[int]] | None:
    """Prompt and answer without `over` tokens; None where that would leave nothing of one of them.

    The first `keep` tokens of the prompt stay: a model rests on its start token.
    """
    if how == "prompt" and over < len(prompt) - keep:
        return prompt[:keep] + prompt[keep + over :], answer
    if how == "response" and over < len(answer):
        return prompt, answer[:-over]
    return None


def assemble(rows: Sequence[tuple[list[int], list[int]]], block_size: int, packing: bool, filler: int) -> Blocks:
    """Blocks of examples, the rest of each filled up with a token that no example sees and that is not scored."""
    one_each = [[index] for index in range(len(rows))]
    bins = best_fit([len(tokens) for tokens, _ in rows], block_size) if packing else one_each
    tokens = torch.full((len(bins), block_size), filler)
    labels = torch.full((len(bins), block_size), IGNORED)
    documents = torch.full((len(bins), block_size), -1)
    for block, members in enumerate(bins):
        start = 0
        for index in members:
            ids, targets = rows[index]
            place = slice(start, start + len(ids))
            tokens[block, place], labels[block, place] = torch.tensor(ids), torch.tensor(targets)
            documents[block, place] = index
            start += len(ids)
    return Blocks(tokens, documents, labels)


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Which items go into which bin of `size`, by best fit with the longest first (Johnson, 1973): nearly no waste.

    Bins come in the order of their first items, so that what comes first in `lengths` still comes early.
    """
    with_room: dict[int, list[int]] = {}
    bins: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        room = next((room for room in range(length, size) if with_room.get(room)), None)
        if room is None:
            number, room = len(bins), size
            bins.append([])
        else:
            number = with_room[room].pop()
        bins[number].append(index)
        with_room.setdefault(room - length, []).append(number)
    return sorted(sorted(each) for each in bins)
