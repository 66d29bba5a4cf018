"""From a config to a module of two models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from data_modules.caches.activation_cache import ActivationCache
from data_modules.pairing import Pairing
from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.config import Config
from lightning_modules.dtypes import resolve_dtype
from lightning_modules.length_guard import guard_length
from lightning_modules.two_models.bridge import Bridge, Measured, first_states, measure_back, together
from lightning_modules.two_models.cross_model import CrossModelModule
from lightning_modules.two_models.paired_states import PairedStates
from lightning_modules.two_models.sites import Site, resolve_sites
from registries import ADAPTERS, UserError
from registries.model_shape import shape_of


def load_source_model(cfg: Config, target: CausalLMModule) -> nn.Module:
    """The source model, frozen; where it is the target itself, that one's own untouched weights."""
    if cfg.source == cfg.model:
        return target.original
    loader = cfg.source_loader()
    model = loader.model(resolve_dtype(cfg.source.dtype, True, loader.config()))
    return guard_length(model).requires_grad_(False).eval().to(target.model.device)


def paired_states(
    cfg: Config,
    target: nn.Module,
    source: nn.Module,
    pairing: Pairing,
    activations: ActivationCache,
    accounts: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {}),
) -> PairedStates:
    """The states of the source and of the target, as it is now, at the sites of the config.

    Args:
        accounts: what the numbers of the source and of the target depend on, by which their states are kept.
    """
    sites = resolve_sites(cfg.adapter, *(shape_of(model.config).num_layers for model in (source, target)))
    return PairedStates(pairing, source, target, sites, activations, *accounts, cfg.adapter.first_token)


def build_bridges(cfg: Config, states: PairedStates, name: str, arguments: Mapping[str, Any]) -> dict[Site, Bridge]:
    """A bridge for every site, with an adapter of this name; nothing is fitted yet."""
    models = states.source.model, states.target.model
    widths = [model.config.get_text_config().hidden_size for model in models]
    bridges, adapter = {}, None
    torch.manual_seed(cfg.seed)
    for site in states.sites:
        if adapter is None or not cfg.adapter.shared:
            adapter = ADAPTERS.build(name, source_width=widths[0], target_width=widths[1], **arguments)
            require_translation(name, adapter, *widths)
        bridges[site] = Bridge(adapter, widths[1], cfg.adapter.first_token).to(models[1].device)
    return bridges


def require_translation(name: str, adapter: nn.Module, source_width: int, target_width: int) -> None:
    """Raise UserError unless a component does what an adapter does: it is fitted, and gives states of the target."""
    if not hasattr(adapter, "fit"):
        raise UserError(f"adapter {name!r} has no method fit(pairs); one that takes nothing from the data does nothing")
    with torch.no_grad():
        shape = tuple(adapter(torch.zeros(2, source_width)).shape)
    if shape != (2, target_width):
        raise UserError(f"adapter {name!r} makes {shape} of 2 states of width {source_width}, not {(2, target_width)}")


def configured_bridges(cfg: Config, states: PairedStates) -> dict[Site, Bridge]:
    """The bridges of the config's adapter."""
    return build_bridges(cfg, states, cfg.adapter.name, cfg.adapter.arguments)


def fit_bridges(bridges: Mapping[Site, Bridge], measured: Mapping[Site, Measured], shared: bool) -> None:
    """Give every bridge its constants, and fit its adapter; a shared one on all sites together."""
    for site, bridge in bridges.items():
        bridge.take(measured[site])
        if not shared:
            bridge.adapter.fit(measured[site].statistics)
    if shared:
        next(iter(bridges.values())).adapter.fit(together(list(measured.values())))


def bridge_models(cfg: Config, target: CausalLMModule) -> CrossModelModule:
    """The module of both models, with bridges that are not fitted yet; states are computed as they are asked for."""
    source, tokenizer = load_source_model(cfg, target), cfg.source_loader().tokenizer()
    pairing = Pairing(target.tokenizer, tokenizer, target.start_token)
    states = paired_states(cfg, target.model, source, pairing, cfg.activation_cache(keep=False))
    return CrossModelModule(target, source, tokenizer, states, configured_bridges(cfg, states))


def reversed_module(cfg: Config, module: CrossModelModule, pairing: Pairing, blocks: Tensor) -> CrossModelModule:
    """The other direction at the first site: the source continues what the target has read, by ridge regression.

    It is fitted on the states that were read for this direction, so that no model runs again.

    Args:
        pairing: of the source's tokens with the target's.
        blocks: (blocks, length), of the target, that were read.
    """
    forward, first_token = module.states.sites[0], module.states.first_token
    statistics = measure_back(module.states, forward, blocks)
    target = CausalLMModule(module.source_model, module.source_tokenizer, start_token=module.start_token)
    site, cache = Site(forward.target, forward.source), cfg.activation_cache(keep=False)
    states = PairedStates(pairing, module.model, module.source_model, [site], cache, {}, {}, first_token)
    bridges = build_bridges(cfg, states, "ridge", {})
    fit_bridges(bridges, {site: Measured(statistics, first_states(states)[site])}, shared=False)
    return CrossModelModule(target, module.model, module.tokenizer, states, bridges)
