"""Text -> token ids: start tokens, plain texts, and prompts with special tokens in them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from registries.registry import UserError

StartToken = bool | Literal["auto"]


def start_token(tokenizer: Any, setting: StartToken = "auto") -> int | None:
    """The token that a model reads before every text; None for no token.

    A model that was trained with a start token rests its attention on it: Gemma 3 without it has 2.5 times the
    perplexity.

    Args:
        setting: `auto`: the token that the tokenizer itself puts before a text, if any; `True`: its start token, even
            if the tokenizer does not put it there; `False`: no token.

    Raises:
        UserError: the tokenizer has no start token, or puts several tokens before a text.
    """
    if setting is False:
        return None
    prefix = _prefix(tokenizer)
    if len(prefix) > 1:
        raise UserError(
            f"this tokenizer puts {len(prefix)} tokens before a text "
            f"({', '.join(map(str, tokenizer.convert_ids_to_tokens(prefix)))}), and a block can start with one: set "
            "dataset.start_token=false"
        )
    if prefix or setting == "auto":
        return prefix[0] if prefix else None
    if tokenizer.bos_token_id is None:
        raise UserError(
            f"dataset.start_token=true: the tokenizer of {len(tokenizer)} tokens has no start token; set it to auto or "
            "false"
        )
    return tokenizer.bos_token_id


def _prefix(tokenizer: Any) -> list[int]:
    """The tokens that a tokenizer puts before a text by itself."""
    plain, marked = (
        tokenizer(["a"], add_special_tokens=special, verbose=False)["input_ids"][0] for special in (False, True)
    )
    starts = (start for start in range(len(marked)) if marked[start : start + len(plain)] == plain)
    return marked[: next(starts, 0)]


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of texts, without start and end tokens.

    A special token that a text writes out (a text about tokenizers may contain `<|endoftext|>`) is plain text.
    """
    if not texts:
        return []
    # verbose=False: no warning about texts longer than the model's context, as they are cut into blocks later.
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def encode_prompts(tokenizer: Any, prompts: Sequence[str], start: int | None) -> list[list[int]]:
    """The tokens of texts that a model is to continue, each with the start token and without an end token.

    A prompt is written for a model, so a special token that it writes out is that token.
    """
    if not prompts:
        return []
    encoded = tokenizer(list(prompts), add_special_tokens=False, split_special_tokens=False, verbose=False)["input_ids"]
    return [_behind(start, tokens) for tokens in encoded]


def _behind(start: int | None, tokens: list[int]) -> list[int]:
    """The tokens of a prompt behind a start token, unless the prompt writes the start token out itself."""
    return tokens if start is None or tokens[:1] == [start] else [start, *tokens]


def encode_filled(tokenizer: Any, prompts: Sequence[Sequence[str]], start: int | None) -> list[list[int]]:
    """As `encode_prompts`, for prompts in parts: texts of a template and values of fields, in turns.

    A special token that a template writes out is that token; in a field it is plain text.
    """
    names = sorted(special_tokens(tokenizer), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, names))) if names else None
    encoded = encode_prompts(tokenizer, ["".join(parts) for parts in prompts], start)
    for index, parts in enumerate(prompts):
        if pattern and any(map(pattern.search, parts[1::2])):
            encoded[index] = _behind(start, _encode_parts(tokenizer, parts, pattern))
    return encoded


def _encode_parts(tokenizer: Any, parts: Sequence[str], pattern: re.Pattern) -> list[int]:
    """The tokens of a prompt in which a field spells a special token."""
    pieces, special = [""], []
    for index, part in enumerate(parts):
        texts = pattern.split(part) if index % 2 == 0 else [part]
        special += pattern.findall(part) if index % 2 == 0 else []
        pieces[-1] += texts[0]
        pieces += texts[1:]
    plain_ids = encode_texts(tokenizer, pieces)
    special_ids = [*([tokenizer.convert_tokens_to_ids(name)] for name in special), []]
    return [token for pair in zip(plain_ids, special_ids, strict=True) for tokens in pair for token in tokens]


def special_tokens(tokenizer: Any) -> set[str]:
    """The special tokens of a tokenizer, as a text may spell them."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return {token.content for token in added if token.special}


def encode_prompt(tokenizer: Any, prompt: str, start: int | None) -> list[int]:
    """The tokens of one prompt, at least one: an empty prompt becomes the start token, or else the end token.

    Raises:
        UserError: the prompt is empty, and the tokenizer has neither of the two.
    """
    (tokens,) = encode_prompts(tokenizer, [prompt], start)
    if tokens:
        return tokens
    if tokenizer.eos_token_id is None:
        raise UserError("a prompt is empty, and this tokenizer has no start or end token to begin with: write a text")
    return [tokenizer.eos_token_id]
