"""A conversation with a model in the terminal: python score.py run=<run> chat=true."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from typing import Any

import torch

from data_modules.dataset_settings import DatasetSettings
from data_modules.instructions import read_template
from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.chat_format import ChatFormat, Turn, chat_format, fitting_turns
from lightning_modules.length_guard import length_limit
from registries import UserError
from registries.architectures import ARCHITECTURES
from registries.model_shape import shape_of
from studies.config.check import ScoreSettings
from studies.progress import say

PROMPT = "> "


def converse(module: CausalLMModule, dataset: DatasetSettings, asked: ScoreSettings, seed: int) -> None:
    """Answer what the user types until the input ends (Ctrl-D). Answers go to stdout word by word, all else to stderr.

    Args:
        dataset: that the model was trained on.
        seed: of the answers, where they are drawn.
    """
    arguments = dataset.arguments
    instructed = "prompt" in arguments and "prompt_with_input" in arguments
    template = read_template(arguments["prompt"], arguments["prompt_with_input"]) if instructed else None
    form, words = chat_format(module.tokenizer, template, module.start)
    longest = text_limit(module.model)
    if longest is not None and longest <= asked.answer_tokens:
        raise UserError(f"answer_tokens={asked.answer_tokens}: this model reads {longest} tokens; ask for fewer")
    say(f"talking by {words}; answers of at most {asked.answer_tokens} tokens, Ctrl-D ends")
    module.model.eval()
    torch.manual_seed(seed)
    with redirect_stdout(sys.__stdout__):
        hold(lambda turns: _answer(module, form, turns, longest, asked), _typed())


def hold(answer: Callable[[list[Turn]], str | None], messages: Iterable[str]) -> list[Turn]:
    """The turns of a conversation. `answer` writes the answer to the last turn; None where that is too long to read."""
    turns: list[Turn] = []
    for message in messages:
        if not message.strip():
            continue
        text = answer([*turns, Turn(message)])
        if text is not None:
            turns.append(Turn(message, text))
    return turns


def text_limit(model: Any) -> int | None:
    """How many tokens a model reads, or was made for; None: any number."""
    limit = length_limit(model)
    if limit is not None:
        return limit.tokens
    family = model.config.get_text_config().model_type
    if family not in ARCHITECTURES or ARCHITECTURES.get(family).attention is None:
        return None
    return shape_of(model.config).max_positions


def _typed() -> Iterable[str]:
    """What the user types, line by line, to the end of the input."""
    import readline  # noqa: F401  (which lets `input` edit a line)

    while True:
        try:
            yield input(PROMPT)
        except EOFError:
            return


@torch.no_grad()
def _answer(
    module: CausalLMModule, form: ChatFormat, turns: list[Turn], longest: int | None, asked: ScoreSettings
) -> str | None:
    from transformers import GenerationConfig, TextStreamer

    model, tokenizer = module.model, module.tokenizer
    room = None if longest is None else longest - asked.answer_tokens
    kept = fitting_turns(form, turns, room)
    if not kept:
        say(f"this message has more than the {room} tokens that the model has room for: write a shorter one")
        return None
    if len(kept) < len(turns):
        say(f"the model now reads the last {len(kept)} of {len(turns)} turns: more are too long for it")
    tokens = torch.tensor([form(kept)], device=model.device)
    end = tokenizer.eos_token_id
    sampled = {"do_sample": True, "temperature": asked.temperature} if asked.temperature else {"do_sample": False}
    rules = GenerationConfig(
        max_new_tokens=asked.answer_tokens, eos_token_id=end, pad_token_id=end if end is not None else 0, **sampled
    )
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    written = model.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=rules, streamer=streamer)
    return tokenizer.decode(written[0, tokens.shape[1] :], skip_special_tokens=True)
