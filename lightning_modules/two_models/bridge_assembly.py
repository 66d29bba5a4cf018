"""From a composed config to a module of two models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data_modules.caches.activation_cache import ActivationCache
from data_modules.pairing import Pairing
from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.dtypes import resolve_dtype
from lightning_modules.length_guard import guard_length
from lightning_modules.options import activation_cache, adapter_arguments, model_loader, resolve_sites
from lightning_modules.soft_tokens.compression import CompressionModule
from lightning_modules.two_models.bridge import Bridge, Measured, first_states, measure_back, together
from lightning_modules.two_models.cross_model import BRIDGES, TWO_MODELS, CrossModelModule
from lightning_modules.two_models.paired_states import PairedStates, Site
from lightning_modules.weights import load_into
from registries import ADAPTERS, UserError
from registries.model_shape import shape_of


def load_source_model(cfg: Mapping[str, Any], module: CrossModelModule) -> nn.Module:
    """The second model, frozen; where it is the first one, that one's own untouched weights."""
    if cfg["source"] == cfg["model"]:
        return module.original
    source = model_loader(cfg, "source")
    model = source.model(resolve_dtype(cfg["source"]["dtype"], True, source.config()))
    return guard_length(model).requires_grad_(False).eval().to(module.model.device)


def paired_states(
    cfg: Mapping[str, Any],
    module: CrossModelModule,
    source_model: nn.Module,
    pairing: Pairing,
    activations: ActivationCache,
    accounts: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {}),
) -> PairedStates:
    """The states of the source and of the module's model, as it is now, at the sites of the config.

    Args:
        accounts: what the numbers of the source and of the target depend on, by which their states are kept.
    """
    shapes = [shape_of(model.config) for model in (source_model, module.model)]
    sites = [Site(*pair) for pair in resolve_sites(cfg, *(shape.num_layers for shape in shapes))]
    first_token = cfg["adapter"]["first_token"]
    return PairedStates(pairing, source_model, module.model, sites, activations, *accounts, first_token)


def build_bridges(
    cfg: Mapping[str, Any], states: PairedStates, name: str, keys: Mapping[str, Any]
) -> dict[Site, Bridge]:
    """A bridge for every site, with an adapter of this name; nothing is fitted yet."""
    models = states.source.model, states.target.model
    widths = [model.config.get_text_config().hidden_size for model in models]
    first_token, bridges, adapter = cfg["adapter"]["first_token"], {}, None
    torch.manual_seed(cfg["seed"])
    for each in states.sites:
        if adapter is None or not cfg["adapter"]["shared"]:
            adapter = ADAPTERS.build(name, source_width=widths[0], target_width=widths[1], **keys)
            require_translation(name, adapter, *widths)
        bridges[each] = Bridge(adapter, widths[1], first_token).to(models[1].device)
    return bridges


def require_translation(name: str, adapter: nn.Module, source_width: int, target_width: int) -> None:
    """Raise UserError unless a component does what an adapter does: it is fitted, and gives states of the target."""
    if not hasattr(adapter, "fit"):
        raise UserError(f"adapter {name!r} has no method fit(pairs); one that takes nothing from the data does nothing")
    with torch.no_grad():
        given = tuple(adapter(torch.zeros(2, source_width)).shape)
    if given != (2, target_width):
        raise UserError(f"adapter {name!r} makes {given} of 2 states of width {source_width}, not {(2, target_width)}")


def configured_bridges(cfg: Mapping[str, Any], states: PairedStates) -> dict[Site, Bridge]:
    """The bridges of `cfg.adapter`."""
    return build_bridges(cfg, states, cfg["adapter"]["name"], adapter_arguments(cfg)[2])


def fit_bridges(bridges: Mapping[Site, Bridge], measured: Mapping[Site, Measured], shared: bool) -> None:
    """Give every bridge its constants, and fit its adapter; a shared one on all sites together."""
    for each, bridge in bridges.items():
        bridge.take(measured[each])
        if not shared:
            bridge.adapter.fit(measured[each].statistics)
    if shared:
        next(iter(bridges.values())).adapter.fit(together(list(measured.values())))


def reversed_module(
    cfg: Mapping[str, Any], module: CrossModelModule, pairing: Pairing, blocks: Tensor
) -> CrossModelModule:
    """The other direction at the first site: the source continues what the target has read, by ridge regression.

    It is fitted on the states that were read for this direction, so that no model runs again.

    Args:
        pairing: of the source's tokens with the target's.
        blocks: (blocks, length), of the target, that were read.
    """
    there, first_token = module.states.sites[0], module.states.first_token
    statistics = measure_back(module.states, there, blocks)
    back = CrossModelModule(module.source_model, module.source_tokenizer, start_token=module.start_token)
    site, nowhere = Site(there.target, there.source), activation_cache(cfg, keep=False)
    states = PairedStates(pairing, module.model, module.source_model, [site], nowhere, {}, {}, first_token)
    back.bridge(module.model, module.tokenizer, states)
    bridges = build_bridges(cfg, states, "ridge", {})
    fit_bridges(bridges, {site: Measured(statistics, first_states(states)[site])}, shared=False)
    back.span(bridges)
    return back


def require_text(data: Any) -> None:
    """Raise UserError unless the data are plain text, which another tokenizer can read."""
    if data.token_bytes is None or data.positions("train") is not None:
        raise UserError(
            f"an adapter pairs the tokens of two models on plain text, and dataset {data.name!r} is "
            f"{'made of tokens' if data.token_bytes is None else 'made of examples'}: choose one of documents "
            "(dataset=pydoc, text, wikitext2, ...)"
        )


def require_data(module: CausalLMModule, data: Any) -> None:
    """Raise UserError unless a module that reads two models can be scored on these data."""
    if isinstance(module, TWO_MODELS):
        require_text(data)
    if isinstance(module, CompressionModule):
        require_continuation(module.context, data)


def require_continuation(context: int, data: Any) -> None:
    """Raise UserError unless something of a block is left behind a context of so many tokens."""
    if context > data.text_size - 2:
        needed = context + 2 + data.settings.block_size - data.text_size
        raise UserError(
            f"dataset.block_size={data.settings.block_size} leaves no continuation of a context of {context} tokens: "
            f"set it to {needed} or more"
        )


def bridge_models(cfg: Mapping[str, Any], module: CrossModelModule) -> CrossModelModule:
    """Set what the module reads, and bridges that are not fitted yet; states are computed as they are asked for."""
    source_model = load_source_model(cfg, module)
    source_tokenizer = model_loader(cfg, "source").tokenizer()
    pairing = Pairing(module.tokenizer, source_tokenizer, module.start_token)
    states = paired_states(cfg, module, source_model, pairing, activation_cache(cfg, keep=False))
    module.bridge(source_model, source_tokenizer, states)
    module.span(configured_bridges(cfg, states))
    return module


def reload(module: CrossModelModule, cfg: Mapping[str, Any], file: Path) -> None:
    """Bridge the models as a run did. Raises UserError as `load_into`."""
    load_into(bridge_models(cfg, module).model.get_submodule(BRIDGES), file)
