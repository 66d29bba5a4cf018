"""Layer-wise transfer: each replaced attention layer learns to reproduce the original's output on its input.

The same idea as attention transfer in LoLCATs (arXiv 2410.10254). All replaced layers learn in one pass, each from
the hidden states of the original model, so that none has to put up with the errors of those below it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.stages import STAGES
from lightning_modules.surgery import attention_parameters
from registries.architectures import architecture_of

# SmolLM2, layer 0, depth 4, 400 steps, perplexity on 48 blocks over the original's: 1.0004 with 10, 1.0173 with 0,
# where one block's loss is 0.36 nats too high.
EARLY_WEIGHT = 10.0


@STAGES.register("transfer")
@dataclass
class Transfer:
    """Trains the attention layers whose originals are given on the relative error of their output.

    The loss of the token at position t is w_t |output - original output|^2 / |original output|^2 with
    w_t = 1 + EARLY_WEIGHT / (1 + t). Relative to each token's own size, as otherwise the few tokens with huge outputs
    are all that counts. Early positions weigh more: they see few others, and the first is the one that heads rest on
    (the attention sink); where its output is wrong, the whole text breaks.
    """

    originals: Mapping[int, nn.Module]
    steps: int
    blocks_per_step: int
    blocks_per_pass: int
    lr: float

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return attention_parameters(model, list(self.originals))

    def loss(self, model: nn.Module, input_ids: Tensor) -> tuple[Tensor, int]:
        total = torch.zeros((), device=input_ids.device)
        for layer, (args, kwargs, target) in self._record(model, input_ids).items():
            attention = architecture_of(model.config.model_type).attention_layers(model)[layer]
            error = attention(*args, **kwargs)[0].float() - target.float()
            relative = error.square().sum(-1) / target.float().square().sum(-1).clamp_min(1e-12)
            positions = torch.arange(relative.shape[1], device=relative.device)
            total = total + (relative * (1 + EARLY_WEIGHT / (1 + positions))).sum() / len(self.originals)
        return total, input_ids.numel()

    def _record(self, model: nn.Module, input_ids: Tensor) -> dict[int, tuple[tuple, dict[str, Any], Tensor]]:
        """layer -> what the original model calls that layer's attention with, and the output it gets.

        Nothing above the highest replaced layer's attention runs.
        """
        records: dict[int, tuple[tuple, dict[str, Any], Tensor]] = {}
        hooks = []
        for layer, original in self.originals.items():

            def record(module, args, kwargs, output, layer=layer):
                records[layer] = (args, kwargs, output[0])
                if layer == max(self.originals):
                    raise _HighestLayerDone

            hooks.append(original.register_forward_hook(record, with_kwargs=True))
        try:
            with torch.no_grad(), _originals_in_place(model, self.originals):
                model.base_model(input_ids=input_ids, use_cache=False)
        except _HighestLayerDone:
            return records
        finally:
            for hook in hooks:
                hook.remove()
        raise RuntimeError("the original attention layers were never called")


class _HighestLayerDone(Exception):
    """Ends a forward pass of which the rest is not needed."""


@contextmanager
def _originals_in_place(model: nn.Module, originals: Mapping[int, nn.Module]) -> Iterator[None]:
    """The model with its original attention layers, for as long as the context lasts."""
    architecture = architecture_of(model.config.model_type)
    replaced = {architecture.attention_path(layer): module for layer, module in originals.items()}
    current = {path: model.get_submodule(path) for path in replaced}
    try:
        for path, module in replaced.items():
            model.set_submodule(path, module)
        yield
    finally:
        for path, module in current.items():
            model.set_submodule(path, module)
