"""Cheap checks of a model after surgery, before anything is trained on it: the rules that keep results honest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from data_modules.batches import ModelInput, positions_of
from lightning_modules.length_guard import length_limit
from lightning_modules.nll import token_nll
from lightning_modules.output_head import final_states, output_logits
from registries.registry import UserError

LENGTH = 24  # or as many as the model reads

# Largest difference of logits that counts as none, relative to the largest logit. Causality is checked within one
# batch, where the arithmetic is the same, and so exactly; the others compare differently shaped computations. Rounding
# grows in a model with many new layers (SmolLM2 with all 30 at depth 2, in bf16: 0.11), see `check`.
EXACT = 1e-6
OWN_DIFFERENCE = (
    0.01  # of training's logits from the model's own: the same computation, up to the order of scaling in bf16
)
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


class PreflightError(UserError):
    """A check failed: results of this model would not mean what they say."""


@contextmanager
def in_dtype(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """A model with its weights in another dtype; afterwards they are what they were."""
    kept = {parameter: parameter.data for parameter in model.parameters() if parameter.dtype != dtype}
    try:
        for parameter in kept:
            parameter.data = parameter.data.to(dtype)
        yield
    finally:
        for parameter, data in kept.items():
            parameter.data = data


def exact_dtypes(model: nn.Module) -> list[torch.dtype]:
    """The dtypes in which a model is checked, so that it is checked and not the rounding of its own.

    fp32 and, on a CPU, fp64 (the kernels of other devices do not all have it), where there is memory for a copy of the
    weights; else the model's own.
    """
    on_cuda = model.device.type == "cuda"
    available = torch.cuda.mem_get_info()[0] if on_cuda else psutil.virtual_memory().available
    dtypes = [torch.float32, torch.float64] if model.device.type == "cpu" else [torch.float32]
    fitting = [dtype for dtype in dtypes if 1.5 * _copied_bytes(model, dtype) < available]
    return fitting or [next(model.parameters()).dtype]


def _copied_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    return sum(dtype.itemsize * parameter.numel() for parameter in model.parameters() if parameter.dtype != dtype)


def exact_logits(model: nn.Module) -> Tensor:
    """What `check` wants to know of a model before a surgery that claims to change nothing."""
    with in_dtype(model, exact_dtypes(model)[0]):
        return logits(model, probe(model))


def check(model: nn.Module, original_logits: Tensor | None = None) -> dict[str, dict[str, Any]]:
    """`preflight` in the first of `exact_dtypes`, and where that fails in the next.

    Rounding that some layers blow up fades with the finer dtype; a broken rule stays broken.
    """
    for dtype in exact_dtypes(model):
        with in_dtype(model, dtype):
            results = preflight(model, original_logits)
        if all(result["passed"] for result in results.values()):
            break
    return results


@torch.no_grad()
def preflight(model: nn.Module, original_logits: Tensor | None = None, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Check causality, prefix consistency, padding and cached decoding on random tokens.

    Args:
        model: a causal LM.
        original_logits: logits of `probe(model, seed)` before surgery, if the surgery claims to change nothing.

    Returns:
        check -> `difference` (of logits, relative to the largest), `allowed`, `passed`.
    """
    was_training = model.training
    model.eval()
    tokens = probe(model, seed)
    full = logits(model, tokens)
    scale, tolerance = full.abs().max().item(), TOLERANCE[next(model.parameters()).dtype]
    half = tokens.shape[1] // 2

    changed = tokens.clone()
    changed[0, half] = (changed[0, half] + 1) % model.config.vocab_size
    both = logits(model, torch.cat([tokens, changed]))
    differences = {
        "causality": (both[0, :half] - both[1, :half], EXACT),
        "prefix": (logits(model, tokens[:, :half]) - full[:, :half], tolerance),
        "padding": (_padded(model, tokens, half) - full[0, :half], tolerance),
        "cache": (_cached(model, tokens) - full[0, half:], tolerance),
    }
    if original_logits is not None:
        differences["identity"] = (full - original_logits, min(tolerance, 0.05))
    model.train(was_training)
    results = {}
    for name, (difference, allowed) in differences.items():
        relative = difference.abs().max().item() / scale
        results[name] = {"difference": relative, "allowed": allowed, "passed": relative <= allowed}
    return results


def require(results: dict[str, dict[str, Any]]) -> None:
    """Raise PreflightError that names every failed check."""
    failed = [
        f"{name}: logits differ by {result['difference']:.2g} of the largest, allowed are {result['allowed']:g}"
        for name, result in results.items()
        if not result["passed"]
    ]
    if failed:
        raise PreflightError(
            f"the model after surgery breaks {len(failed)} rule(s): {'; '.join(failed)}. Its results would not mean "
            "what they say: mend the component, or train all the same with preflight=false"
        )


def probe(model: nn.Module, seed: int = 0) -> Tensor:
    """The random tokens that are checked, (1, length)."""
    generator, limit = torch.Generator().manual_seed(seed), length_limit(model)
    length = LENGTH if limit is None else min(LENGTH, limit.tokens)
    return torch.randint(model.config.vocab_size, (1, length), generator=generator).to(model.device)


@torch.no_grad()
def require_own_logits(model: nn.Module) -> None:
    """Compare the logits and the loss that training computes from the final hidden states with the model's own, once.

    Raises:
        UserError: they differ, so that training would follow another objective than scores measure.
    """
    was_training = model.training
    tokens = probe(model.eval())
    own = model(input_ids=tokens, labels=tokens, use_cache=False)  # labels, for once: to see the family's own loss
    logits = output_logits(model, final_states(model, ModelInput(tokens)))
    model.train(was_training)
    pairs = {"logits": (logits, own.logits), "loss": (token_nll(logits, tokens).mean(), own.loss)}
    for name, (computed, expected) in pairs.items():
        scale = expected.float().abs().max().clamp_min(1e-12)
        relative = ((computed.float() - expected.float()).abs().max() / scale).item()
        if relative > OWN_DIFFERENCE:  # what is not a number is an outcome of its own
            raise UserError(
                f"the {name} of this {model.config.model_type!r} model, as training computes it from the final hidden "
                f"states, differs from the model's own by {relative:.2g} of the largest: the family changes what its "
                "output head gives. Register its Architecture with logits=..., a function from (the head's output, "
                "config) to the logits, such as lambda output, config: output / config.logits_scaling"
            )


@torch.no_grad()
def logits(model: nn.Module, tokens: Tensor, **options: Any) -> Tensor:
    """(batch, length, vocabulary) in fp32, without a cache unless asked for."""
    return model(input_ids=tokens, **{"use_cache": False, **options}).logits.float()


def _padded(model: nn.Module, tokens: Tensor, length: int) -> Tensor:
    """Logits of the first `length` tokens, left-padded in a batch beside a longer row."""
    total = tokens.shape[1]
    padding = total - length
    short = torch.cat([tokens[:, :1].expand(1, padding), tokens[:, :length]], dim=1)
    mask = torch.ones(2, total, dtype=torch.long, device=tokens.device)
    mask[1, :padding] = 0
    batch = torch.cat([tokens, short])
    return logits(model, batch, attention_mask=mask, position_ids=positions_of(mask))[1, padding:]


def _cached(model: nn.Module, tokens: Tensor) -> Tensor:
    """Logits of the second half, decoded token by token from a cache that holds the first."""
    length = tokens.shape[1]
    half = length // 2
    cache = model(input_ids=tokens[:, :half], use_cache=True).past_key_values
    steps = []
    for index in range(half, length):
        output = model(input_ids=tokens[:, index : index + 1], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        steps.append(output.logits[0].float())
    return torch.cat(steps)
