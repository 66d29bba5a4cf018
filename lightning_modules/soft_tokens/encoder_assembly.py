"""From a config to a module that compresses texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from data_modules.caches.activation_cache import ActivationCache
from data_modules.pairing import Pairing
from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.config import Config
from lightning_modules.hidden_states.frozen_states import FrozenStates
from lightning_modules.hidden_states.injection import block_entry
from lightning_modules.soft_tokens.compression import CompressionModule, SoftTokens
from lightning_modules.two_models.bridge_assembly import load_source_model
from registries import COMPRESSORS
from registries.layers import resolve_layers
from registries.model_shape import shape_of


def build_compression(
    cfg: Config,
    target: CausalLMModule,
    activations: ActivationCache | None = None,
    account: Callable[[nn.Module, Any], Mapping[str, Any]] | None = None,
) -> CompressionModule:
    """The module of both models, with an encoder that is not trained yet.

    Args:
        activations: keeps the source's states; None computes them as they are asked for.
        account: (source model, its tokenizer) -> what the source's numbers depend on, by which its states are kept.
    """
    settings = cfg.compressor
    source, tokenizer = load_source_model(cfg, target), cfg.source_loader().tokenizer()
    pairing = Pairing(target.tokenizer, tokenizer, target.start_token)
    (layer,) = resolve_layers(settings.source_layer, shape_of(source.config).num_layers + 1)
    cache = activations or cfg.activation_cache(keep=False)
    identity = account(source, tokenizer) if account else {}
    states = FrozenStates(source, {str(layer): block_entry(source, layer)}, cache, identity)
    widths = [model.config.get_text_config().hidden_size for model in (source, target.model)]
    torch.manual_seed(cfg.seed)
    encoder = COMPRESSORS.build(
        settings.name, source_width=widths[0], target_width=widths[1], tokens=settings.tokens, **settings.arguments
    )
    soft = SoftTokens(encoder).to(target.model.device)
    return CompressionModule(target, settings.context, settings.tokens, states, pairing, soft)
