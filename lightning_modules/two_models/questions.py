"""A task of which only the source sees what is needed: how much of it gets through to the target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from data_modules.encoding import encode_prompt, encode_texts
from data_modules.facts import Question
from data_modules.randomness import generator
from lightning_modules.two_models.cross_model import CrossModelModule
from lightning_modules.two_models.sites import Site

CONDITIONS = ("text", "nothing", "states", "shuffled", "random")


@torch.no_grad()
def right_answers(
    module: CrossModelModule, questions: Sequence[Question], site: Site, condition: str
) -> Iterator[bool]:
    """Whether the target holds the right one of a question's answers for the likeliest, by its first token.

    Args:
        site: where states enter.
        condition: `text`: the target reads the context itself; `nothing`: it reads the question alone; `states`: the
            context is read by the source alone, and its translated states are put before the question; `shuffled`:
            those of the next question's context; `random`: noise with the mean and variance of the target's states.
    """
    module.eval()
    for index, question in enumerate(questions):
        asked = _tokens(module, question.question, begins=condition == "nothing")
        if condition in ("text", "nothing"):
            context = _tokens(module, question.context) if condition == "text" else asked[:0]
            logits = module.model(input_ids=torch.cat([context, asked])[None], use_cache=False).logits[0, -1]
        else:
            read = questions[(index + 1) % len(questions)] if condition == "shuffled" else question
            states = _translated(module, site, read.context)
            if condition == "random":
                states = _noise_like(module, site, states, index)
            logits = _after(module, site, states, asked)
        candidates = [first_token(module.tokenizer)(answer) for answer in question.answers]
        yield int(logits[candidates].argmax()) == question.right


def first_token(tokenizer: object) -> Callable[[str], int]:
    """Text -> its first token."""
    return lambda text: encode_texts(tokenizer, [text])[0][0]


def _tokens(module: CrossModelModule, text: str, begins: bool = True) -> Tensor:
    """(length,); with the start token, where it is a beginning."""
    tokens = encode_prompt(module.tokenizer, text, module.start if begins else None)
    return torch.tensor(tokens, device=module.model.device)


def _translated(module: CrossModelModule, site: Site, context: str) -> Tensor:
    """(length, target width) for a context that only the source reads."""
    states, paired = module.states.read(_tokens(module, context))
    return module.bridges[site](states[site], paired)


def _noise_like(module: CrossModelModule, site: Site, states: Tensor, index: int) -> Tensor:
    """As many states drawn at random; the first is kept, which tells nothing."""
    bridge = module.bridges[site]
    drawn = torch.randn(states.shape, generator=generator("noise", index)).to(states)
    noise = bridge.mean + drawn * (bridge.variance / len(bridge.mean)).sqrt()
    return torch.cat([states[:1], noise[1:]])


def _after(module: CrossModelModule, site: Site, states: Tensor, asked: Tensor) -> Tensor:
    """The target's logits (vocabulary,) after a question that follows on states."""
    mask = torch.ones(1, len(states), dtype=torch.long, device=states.device)
    continuation, _ = module.continuation(site, states[None], mask)
    return continuation.step(asked[None])[0]
