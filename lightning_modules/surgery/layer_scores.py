"""Scores of linear layers: what LoRA there is worth, measured on a few batches before any training.

`gradient` and `fisher` are what one trainable parameter is worth, so that layers of different sizes compare;
`feature_norm` tells how a layer fits its inputs, whatever its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from data_modules.batches import ModelInput
from lightning_modules.surgery.lora import ADAPTER, lora_parameters, place_lora
from lightning_modules.surgery.twins import twin
from registries.placements.importance import Score
from registries.placements.placement import Linear

PROBE_RANK = 8

Batches = Iterable[Mapping[str, Tensor]]


def measure_scores(
    score: Score,
    model: nn.Module,
    linears: Sequence[Linear],
    batches: Batches,
    loss: Callable[[nn.Module, Mapping[str, Tensor]], Tensor],
) -> dict[str, float]:
    """Module -> score; the higher, the more LoRA there is worth.

    Args:
        score: `gradient`, `fisher` or `feature_norm`; see the functions of that name.
        model: a frozen causal LM; it stays as it is.
        linears: where LoRA may go.
        batches: training batches.
        loss: mean loss of a batch.
    """
    if score == "feature_norm":
        return feature_norm(model, linears, batches)
    mean, mean_square = _gradients(model, linears, batches, loss)
    return mean if score == "gradient" else mean_square


def _gradients(
    model: nn.Module, linears: Sequence[Linear], batches: Batches, loss: Callable
) -> tuple[dict[str, float], dict[str, float]]:
    """Module -> squared norm of the loss's gradient for LoRA's B at its start, per parameter: of the mean over all
    blocks (`gradient`), and the mean over blocks of it (`fisher`, the diagonal of the empirical Fisher information).

    At the start B is 0, so that A has no gradient, and a step of size e along B's gradient g lowers the loss by
    e |g|^2. With random A the expectation of |g|^2 is the squared gradient norm of the weight times rank / (3 inputs).
    No gradient of a whole weight is ever held.
    """
    probe = twin(model)
    ranks = {linear: min(PROBE_RANK, linear.max_rank) for linear in linears}
    place_lora(probe, [linear.row(rank, "lora") for linear, rank in ranks.items()])
    for parameter in lora_parameters(probe).values():
        parameter.data = parameter.data.float()
    modules = {linear: probe.get_submodule(linear.module) for linear in linears}
    layers = {linear: module.lora_B[ADAPTER].weight.requires_grad_(True) for linear, module in modules.items()}
    sums = {linear: torch.zeros_like(weight) for linear, weight in layers.items()}
    squares, blocks = dict.fromkeys(layers, 0.0), 0
    for batch in batches:
        for row in range(len(batch["input_ids"])):
            loss(probe, {key: tensor[row : row + 1] for key, tensor in batch.items()}).backward()
            blocks += 1
            for linear, weight in layers.items():
                squares[linear] += weight.grad.square().sum().item()
                sums[linear] += weight.grad
                weight.grad = None
    # Per parameter, and as if additions were not scaled.
    size = {
        linear: rank * (linear.inputs + linear.outputs) * modules[linear].scaling[ADAPTER] ** 2
        for linear, rank in ranks.items()
    }
    mean = {linear.module: (sums[linear] / blocks).square().sum().item() / size[linear] for linear in linears}
    return mean, {linear.module: squares[linear] / blocks / size[linear] for linear in linears}


@torch.no_grad()
def feature_norm(model: nn.Module, linears: Sequence[Linear], batches: Batches) -> dict[str, float]:
    """Module -> how little its weight is aligned with its input: the inverse of the normalised feature norm.

    That is |W z| over its expectation for a random z of the same norm, |z| |W| / sqrt(inputs) (Hayou et al., arXiv
    2506.20629, who place LoRA where it is low: what is aligned already has learnt from such data).
    """
    observed = dict.fromkeys((linear.module for linear in linears), 0.0)
    expected = dict(observed)

    def hook(name: str, weight_norm: float) -> Callable:
        def record(module: nn.Module, args: tuple, output: Tensor) -> None:
            features = output if module.bias is None else output - module.bias
            observed[name] += features.float().norm(dim=-1).sum().item()
            expected[name] += args[0].float().norm(dim=-1).sum().item() * weight_norm

        return record

    hooks = []
    for linear in linears:
        module = model.get_submodule(linear.module)
        norm = module.weight.float().norm().item() / linear.inputs**0.5
        hooks.append(module.register_forward_hook(hook(linear.module, norm)))
    try:
        for batch in batches:
            model(**ModelInput.of(batch).arguments, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: expected[name] / observed[name] for name in observed}
