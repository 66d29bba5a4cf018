"""From a composed config to a module that compresses texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_modules.caches.activation_cache import ActivationCache
from data_modules.pairing import Pairing
from lightning_modules.hidden_states.frozen_states import FrozenStates
from lightning_modules.hidden_states.injection import block_entry
from lightning_modules.options import activation_cache, compressor_options, model_loader, split
from lightning_modules.soft_tokens.compression import COMPRESSOR, CompressionModule, SoftTokens
from lightning_modules.two_models.bridge_assembly import load_source_model
from lightning_modules.weights import load_into
from registries import COMPRESSORS
from registries.layers import resolve_layers
from registries.model_shape import shape_of


def compress_models(
    cfg: Mapping[str, Any],
    module: CompressionModule,
    activations: ActivationCache | None = None,
    account: Callable[[nn.Module, Any], Mapping[str, Any]] | None = None,
) -> CompressionModule:
    """Set what the module reads, with an encoder that is not trained yet.

    Args:
        activations: keeps the source's states; None computes them as they are asked for.
        account: (source model, its tokenizer) -> what the source's numbers depend on, by which its states are kept.
    """
    shared, own = split(cfg["compressor"], compressor_options)
    source_model = load_source_model(cfg, module)
    source_tokenizer = model_loader(cfg, "source").tokenizer()
    pairing = Pairing(module.tokenizer, source_tokenizer, module.start_token)
    (layer,) = resolve_layers(shared["source_layer"], shape_of(source_model.config).num_layers + 1)
    cache = activations or activation_cache(cfg, keep=False)
    identity = account(source_model, source_tokenizer) if account else {}
    states = FrozenStates(source_model, {str(layer): block_entry(source_model, layer)}, cache, identity)
    module.compress(states, pairing, shared["context"], shared["tokens"])
    models = source_model, module.model
    widths = [model.config.get_text_config().hidden_size for model in models]
    torch.manual_seed(cfg["seed"])
    encoder = COMPRESSORS.build(
        cfg["compressor"]["name"], source_width=widths[0], target_width=widths[1], tokens=shared["tokens"], **own
    )
    module.encode(SoftTokens(encoder).to(module.model.device))
    return module


def reload(module: CompressionModule, cfg: Mapping[str, Any], file: Path) -> None:
    """The encoder of a run. Raises UserError as `load_into`."""
    compress_models(cfg, module)
    load_into(module.model.get_submodule(COMPRESSOR), file)
