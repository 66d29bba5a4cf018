"""The translation of the source's states at a site, and what the training text tells of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_modules.two_models.paired_states import PairedStates, has_state
from lightning_modules.two_models.sites import Site
from registries.adapters.adapter import Adapter
from registries.adapters.moments import Gathering, Moments, Statistics
from registries.settings import FirstToken


class Measured(NamedTuple):
    """What the training text tells of a site.

    Attributes:
        statistics: of the paired rows.
        first: (target width,), the target's state at a start token, or else at an end token that begins a text.
    """

    statistics: Statistics
    first: Tensor


def measure(states: PairedStates, blocks: Tensor) -> dict[Site, Measured]:
    """Statistics of every site over blocks of the target, (blocks, length).

    Raises:
        UserError: no position is paired, or states are not finite.
    """
    gathered = {site: Gathering(len(blocks)) for site in states.sites}
    for block in blocks:
        for site, both in states(block).items():
            gathered[site].add(both.source[both.paired], both.target[both.paired])
    statistics = {site: gathering.statistics() for site, gathering in gathered.items()}
    firsts = first_states(states)
    return {site: Measured(statistics[site], firsts[site]) for site in states.sites}


def measure_back(states: PairedStates, site: Site, blocks: Tensor) -> Statistics:
    """The statistics of a site the other way: the target's states for each of the source's tokens, and the source's."""
    gathered = Gathering(len(blocks))
    for block in blocks:
        paired = states.paired(block)
        target, source = states.of_target(block)[site], states.of_source(paired.tokens)[site]
        with_state = has_state(paired.back, states.first_token)
        gathered.add(
            target[paired.back[with_state].to(target.device)], source[with_state.to(source.device)].to(target.device)
        )
    return gathered.statistics()


def first_states(states: PairedStates) -> dict[Site, Tensor]:
    """The target's state at a start token, or else at an end token that begins a text, (target width,), by site."""
    opening = states.of_target(torch.tensor([states.pairing.opening]))
    return {site: rows[0] for site, rows in opening.items()}


class Bridge(nn.Module):
    """Translates the source's states at one site, or at several that share an adapter.

    Where a token has no source state it gets a constant of the target: its mean state, or at the first token of a text
    the state that a start or end token has there. Neither tells anything of the text, and they are the same for all
    adapters.

    Args:
        adapter: what translates.
        target_width: of the target's states.
        first_token: see `PairedStates`.
    """

    def __init__(self, adapter: Adapter, target_width: int, first_token: FirstToken = "constant"):
        super().__init__()
        self.adapter, self.first_token = adapter, first_token
        self.register_buffer("mean", torch.zeros(target_width))
        self.register_buffer("first", torch.zeros(target_width))
        self.register_buffer("variance", torch.ones(()))  # of the target's states, summed over channels

    def take(self, measured: Measured) -> None:
        """Take the constants of a site; the adapter is fitted apart, since sites may share it."""
        everything = measured.statistics.everything
        means = everything.means()
        self.mean.copy_(means[1])
        self.first.copy_(measured.first)
        self.variance.copy_(everything.about(*means).yy / everything.rows)

    def forward(self, source: Tensor, paired: Tensor) -> Tensor:
        """(..., length, source width) states and where there are any, (..., length) -> (..., length, target width)."""
        translated = torch.where(paired[..., None], self.adapter(source.float()), self.mean)
        if self.first_token == "translate":
            return translated
        is_first = torch.arange(source.shape[-2], device=source.device) == 0
        return torch.where(is_first[:, None], self.first, translated)


def together(measured: Sequence[Measured]) -> Statistics:
    """The statistics of several sites as one, for an adapter that they share."""
    fitted, held_out = Moments(), Moments()
    for site in measured:
        fitted, held_out = fitted + site.statistics.fitted, held_out + site.statistics.held_out
    return Statistics(fitted, held_out)
