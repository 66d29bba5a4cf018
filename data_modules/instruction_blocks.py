"""Examples -> blocks in which no example sees another."""

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
        counts: how many examples were too long and so `dropped`, or got `cut prompts` or `cut responses`.
    """

    rows: list[tuple[list[int], list[int]]]
    counts: Counter


def encode(
    examples: Sequence[Example], tokenizer: Any, settings: InstructionSettings, block_size: int, start: int | None
) -> Encoded:
    """Start token, prompt, response and end token of each example, with the labels of the scored tokens.

    Prompt and response are tokenised apart, as when a model continues the prompt. The first token of an example is
    never scored, since the token before it in a block belongs to another example.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    prompts = encode_filled(tokenizer, [example.parts or (example.prompt,) for example in examples], start)
    responses = encode_texts(tokenizer, [example.response for example in examples])
    rows, counts = [], Counter()
    for prompt, response in zip(prompts, responses, strict=True):
        answer = [*response, *end]
        excess = len(prompt) + len(answer) - block_size
        if excess > 0:
            shortened = _shortened(prompt, answer, excess, settings.too_long, 0 if start is None else 1)
            if shortened is None:
                counts["dropped"] += 1
                continue
            counts["cut prompts" if settings.too_long == "prompt" else "cut responses"] += 1
            prompt, answer = shortened
        unscored = max(1, len(prompt)) if settings.loss_on == "response" else 1
        tokens = [*prompt, *answer]
        rows.append((tokens, [IGNORED] * unscored + tokens[unscored:]))
    return Encoded(rows, counts)


def _shortened(
    prompt: list[int], answer: list[int], excess: int, too_long: TooLong, keep: int
) -> tuple[list[int], list[int]] | None:
    """Prompt and answer without `excess` tokens; None where nothing would be left of the prompt or of the answer.

    The first `keep` tokens of the prompt stay, since a model rests its attention on the start token.
    """
    if too_long == "prompt" and excess < len(prompt) - keep:
        return prompt[:keep] + prompt[keep + excess :], answer
    if too_long == "response" and excess < len(answer):
        return prompt, answer[:-excess]
    return None


def assemble(rows: Sequence[tuple[list[int], list[int]]], block_size: int, packing: bool, filler: int) -> Blocks:
    """Blocks of examples, each filled up to its end with a token that no example sees and that is not scored."""
    lengths = [len(tokens) for tokens, _ in rows]
    bins = best_fit(lengths, block_size) if packing else [[index] for index in range(len(rows))]
    tokens = torch.full((len(bins), block_size), filler)
    labels = torch.full((len(bins), block_size), IGNORED)
    documents = torch.full((len(bins), block_size), -1)
    for block, members in enumerate(bins):
        start = 0
        for index in members:
            ids, targets = rows[index]
            span = slice(start, start + len(ids))
            tokens[block, span], labels[block, span] = torch.tensor(ids), torch.tensor(targets)
            documents[block, span] = index
            start = span.stop
    return Blocks(tokens, documents, labels)


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """The items of each bin of `size`, by best fit with the longest first (Johnson, 1973), which wastes nearly nothing.

    Bins come in the order of their first items, so that an item early in `lengths` still comes early.
    """
    with_room: dict[int, list[int]] = {}
    bins: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        room = next((room for room in range(length, size) if with_room.get(room)), None)
        if room is None:
            bin_index, room = len(bins), size
            bins.append([])
        else:
            bin_index = with_room[room].pop()
        bins[bin_index].append(index)
        with_room.setdefault(room - length, []).append(bin_index)
    return sorted(map(sorted, bins))
