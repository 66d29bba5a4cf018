"""Text -> token ids: what begins a text, what is text and what is not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from registries.registry import UserError

StartToken = bool | Literal["auto"]


def start_token(tokenizer: Any, setting: StartToken = "auto") -> int | None:
    """The token that a model is given before every text; None for none.

    A model that was trained with one rests its attention on it: without it, Gemma 3 has 2.5 times the perplexity.

    Args:
        setting: `auto`: the one that the tokenizer itself puts before a text, if it does; `True`: its start token, also
            where it does not put it there; `False`: none.

    Raises:
        UserError: there is none, or the tokenizer puts several tokens before a text.
    """
    if setting is False:
        return None
    before = _before(tokenizer)
    if len(before) > 1:
        raise UserError(
            f"this tokenizer puts {len(before)} tokens before a text "
            f"({', '.join(map(str, tokenizer.convert_ids_to_tokens(before)))}), and a block can start with one: set "
            "dataset.start_token=false"
        )
    if before or setting == "auto":
        return before[0] if before else None
    if tokenizer.bos_token_id is None:
        raise UserError(
            f"dataset.start_token=true: the tokenizer of {len(tokenizer)} tokens has no start token; set it to auto or "
            "false"
        )
    return tokenizer.bos_token_id


def _before(tokenizer: Any) -> list[int]:
    """The tokens that a tokenizer puts before a text by itself."""
    plain, whole = (
        tokenizer(["a"], add_special_tokens=added, verbose=False)["input_ids"][0] for added in (False, True)
    )
    places = (place for place in range(len(whole)) if whole[place : place + len(plain)] == plain)
    return whole[: next(places, 0)]


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of texts and nothing beside: no start token, no end token, no special token that a text writes out.

    A text about tokenizers may contain `<|endoftext|>`; there it is text as all other.
    """
    if not texts:
        return []
    # verbose=False: no warning about texts longer than the model's context, as they are cut into blocks later.
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def encode_prompts(tokenizer: Any, prompts: Sequence[str], start: int | None) -> list[list[int]]:
    """The tokens of texts that a model is to continue: each begins with the start token and ends where the text ends.

    A prompt is written for a model, so that a special token that it writes out is one.
    """
    if not prompts:
        return []
    encoded = tokenizer(list(prompts), add_special_tokens=False, split_special_tokens=False, verbose=False)["input_ids"]
    return [_behind(start, tokens) for tokens in encoded]


def _behind(start: int | None, tokens: list[int]) -> list[int]:
    """The tokens of a prompt behind a start token, which it may write out itself."""
    return tokens if start is None or tokens[:1] == [start] else [start, *tokens]


def encode_filled(tokenizer: Any, prompts: Sequence[Sequence[str]], start: int | None) -> list[list[int]]:
    """As `encode_prompts`, for prompts in parts: what a template says and what a field says, in turns.

    A special token in a template is one; in a field it is text that happens to be spelled like it.
    """
    names = sorted(special_tokens(tokenizer), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, names))) if names else None
    encoded = encode_prompts(tokenizer, ["".join(parts) for parts in prompts], start)
    for index, parts in enumerate(prompts):
        if pattern and any(map(pattern.search, parts[1::2])):
            encoded[index] = _behind(start, _encode_parts(tokenizer, parts, pattern))
    return encoded


def _encode_parts(tokenizer: Any, parts: Sequence[str], pattern: re.Pattern) -> list[int]:
    """The tokens of a prompt of which some field spells a special token."""
    pieces, special = [""], []
    for index, part in enumerate(parts):
        texts = pattern.split(part) if index % 2 == 0 else [part]
        special += pattern.findall(part) if index % 2 == 0 else []
        pieces[-1] += texts[0]
        pieces += texts[1:]
    texts = encode_texts(tokenizer, pieces)
    between = [[tokenizer.convert_tokens_to_ids(name)] for name in special]
    return [token for pair in zip(texts, [*between, []], strict=True) for tokens in pair for token in tokens]


def special_tokens(tokenizer: Any) -> set[str]:
    """The special tokens of a tokenizer, as a text may spell them."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return {token.content for token in added if token.special}


def encode_prompt(tokenizer: Any, prompt: str, start: int | None) -> list[int]:
    """The tokens of one prompt, one at least: an empty prompt is the start token, or the end token of a text before it.

    Raises:
        UserError: the prompt is empty, and there is neither.
    """
    (tokens,) = encode_prompts(tokenizer, [prompt], start)
    if tokens:
        return tokens
    if tokenizer.eos_token_id is None:
        raise UserError("a prompt is empty, and this tokenizer has no start or end token to begin with: write a text")
    return [tokenizer.eos_token_id]
