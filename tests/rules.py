"""The rules that every attention replacement keeps on every model family, as measurements of a causal LM.

Each function returns how far the model is from the rule, as a difference of logits relative to the largest logit;
`ALLOWED` is what rounding explains. The cases come from the registry: a component is measured with its defaults as soon
as it is registered, and with more options where `OPTIONS` has some for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, get_args

import torch
from torch import Tensor, nn
from transformers import StaticCache

from lightning_modules.surgery.replaced_attention import replace_attention
from registries import ATTENTION, MODELS
from registries.models.random import Family
from registries.registry import parameters

ALLOWED = 2e-5

# Longer than the 128 positions that a backend computes at once, and often round the ring, which divides neither.
LENGTH = 150
PERIOD = 18

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "toroidal": [
        {},
        {"depth": 1, "lambda_distance": 0.0},
        {"depth": 2, "lambda_distance": 2.0, "period": PERIOD, "position": "toroidal", "fusion_mode": "identity"},
        {"depth": 4, "lambda_distance": 2.0, "period": PERIOD, "fusion_mode": "attention", "temperature": True},
        {"depth": 4, "frequencies": "neighbouring", "fusion_rank": 2, "fusion_residual": False},
        {"depth": 1, "position": "toroidal", "period": PERIOD, "fusion_mode": "mean"},
    ],
    "window": [{}, {"window": 3, "period": PERIOD}],
}

# Changes to a family's config. A window of 12 drops keys from the cache long before the texts here end.
MODELS_UNDER_TEST: dict[str, dict[str, Any]] = {
    **{family: {} for family in get_args(Family)},
    "mistral, sliding": {"sliding_window": 12},
    "gemma3, sliding": {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]},
}


@dataclass(frozen=True)
class Case:
    """A registered component with options."""

    name: str
    options: dict[str, Any] = field(hash=False)

    def __str__(self) -> str:
        return ",".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])


def cases() -> Iterator[Case]:
    """Every registered replacement, with several options and, where it has backends, on each that a CPU trains on."""
    for name in ATTENTION.names():
        backend = parameters(ATTENTION.get(name)).get("backend")
        backends = (
            [{"backend": one} for one in get_args(backend.annotation) if one not in ("auto", "flex")]
            if backend
            else [{}]
        )
        for options in OPTIONS.get(name, [{}]):
            yield from (Case(name, options | one) for one in backends)


def language_model(name: str, seed: int = 0, **dimensions: Any) -> nn.Module:
    """A random model of two layers, named as in `MODELS_UNDER_TEST`.

    Its matrices are ten times larger than a fresh model's: otherwise attention is nearly uniform and logits are nearly
    equal, and what breaks a rule does not show. Nor are its biases zero and the weights of its norms one, as in a fresh
    model: what loses them would not show either.
    """
    family = name.split(",")[0]
    source = MODELS.build(
        "random", family=family, num_kv_heads=None if family in ("gpt2", "gpt_neox") else 2, **dimensions
    )
    source.dimensions |= MODELS_UNDER_TEST[name]
    torch.manual_seed(seed)
    model = source.model(torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model.requires_grad_(False)


def limited_model(name: str, positions: int) -> nn.Module:
    """As `language_model`: one that reads texts of so many tokens alike, and none (or others otherwise) beyond."""
    family, *scaling = name.split(", ")
    source = MODELS.build("random", family=family, max_positions=positions)
    if scaling:
        source.dimensions["rope_parameters"] = {"rope_type": scaling[0], "rope_theta": 10_000.0, "factor": 2.0}
    torch.manual_seed(0)
    model = source.model(torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    return model.requires_grad_(False)


@cache
def operated_model(name: str, case: Case) -> nn.Module:
    """The model with the component in both layers, and its parameters drawn so that all of them matter."""
    model = language_model(name)
    replace_attention(model, case.name, [0, 1], options=case.options)
    return disturb_cores(model)


def disturb_cores(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        if ".core." in name:
            nn.init.normal_(parameter, std=0.5)
    return model


def tokens(model: nn.Module, rows: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.config.vocab_size, (rows, length), generator=generator)


@torch.no_grad()
def logits(model: nn.Module, input_ids: Tensor, **options: Any) -> Tensor:
    return model(input_ids=input_ids, **{"use_cache": False, **options}).logits


def difference(logits: Tensor, expected: Tensor) -> float:
    return ((logits - expected).abs().max() / expected.abs().max()).item()


MASK_FORMS = ("none", "2-D", "4-D boolean", "4-D additive")


def mask_of(form: str, rows: int, length: int, padding: int) -> Tensor | None:
    """Causal attention with left padding, as each of the forms that a model takes."""
    if form == "none":
        return None
    keep = torch.ones(rows, length, dtype=torch.long)
    keep[:, :padding] = 0
    if form == "2-D":
        return keep
    allowed = torch.ones(length, length, dtype=torch.bool).tril() & keep.bool()[:, None, None, :]
    allowed = allowed | torch.eye(length, dtype=torch.bool)  # transformers lets padding see itself, against NaN
    if form == "4-D boolean":
        return allowed
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)


def future_influence(model: nn.Module, mask_form: str) -> tuple[float, float]:
    """By how much a changed token moves the logits before it, and those after it (at least)."""
    padding, places = 0 if mask_form == "none" else 3, (37, 131)
    batch = tokens(model, 1, LENGTH).repeat(1 + len(places), 1)
    for row, place in enumerate(places, start=1):
        batch[row, place] = (batch[row, place] + 1) % model.config.vocab_size
    first, *changed = logits(model, batch, attention_mask=mask_of(mask_form, len(batch), LENGTH, padding))
    before = max(difference(row[padding:t], first[padding:t]) for row, t in zip(changed, places, strict=True))
    after = min(difference(row[t + 1 :], first[t + 1 :]) for row, t in zip(changed, places, strict=True))
    return before, after


def padding_influence(model: nn.Module) -> float:
    """By how much padding of any content, on either side, moves the logits of the real tokens."""
    real, padding = LENGTH - 9, 9
    text = tokens(model, 1, real)
    fillings = [torch.zeros(1, padding, dtype=torch.long), tokens(model, 1, padding) + 1]
    rows = [torch.cat([filling, text], dim=1) for filling in fillings]
    rows += [torch.cat([text, filling], dim=1) for filling in fillings]
    mask = torch.ones(4, LENGTH, dtype=torch.long)
    mask[:2, :padding] = 0
    mask[2:, real:] = 0
    padded = logits(model, torch.cat(rows), attention_mask=mask, position_ids=_positions(mask))
    alone = logits(model, text)[0]
    return max(
        difference(row[padding:] if left else row[:real], alone)
        for row, left in zip(padded, (True, True, False, False), strict=True)
    )


def prefix_difference(model: nn.Module) -> float:
    """Between the logits of a text's beginning alone, and those within the whole text."""
    text = tokens(model, 2, LENGTH)
    full = logits(model, text)
    return max(difference(logits(model, text[:, :end]), full[:, :end]) for end in (7, 45, 129))


@torch.no_grad()
def cache_difference(model: nn.Module, padding: int = 0, static: bool = False) -> float:
    """Between a text decoded piece by piece and token by token from a cache, and all of it at once.

    The second of two rows is padded on the left, with positions as `generate` counts them.
    """
    length = 50
    text = tokens(model, 2, length)
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, :padding] = 0

    def options(start: int, stop: int) -> dict[str, Any]:
        if not padding:
            return {}
        return {"attention_mask": mask[:, :stop], "position_ids": _positions(mask)[:, start:stop]}

    cache = StaticCache(config=model.config, max_cache_len=length + 6) if static else None
    pieces, start = [], 0
    for size in (17, 1, 5, 1, 1, 9, *[1] * 16):
        stop = start + size
        output = model(input_ids=text[:, start:stop], past_key_values=cache, use_cache=True, **options(start, stop))
        cache, start = output.past_key_values, stop
        pieces.append(output.logits)
    cached, full = torch.cat(pieces, dim=1), logits(model, text, **options(0, length))
    return max(difference(cached[0], full[0]), difference(cached[1, padding:], full[1, padding:]))


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp_min(0)
