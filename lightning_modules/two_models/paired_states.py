"""The hidden states of two models at the tokens of the same text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from torch import Tensor, nn

from data_modules.batches import ModelInput
from data_modules.caches.activation_cache import ActivationCache
from data_modules.pairing import NONE, Paired, Pairing
from lightning_modules.hidden_states.frozen_states import FrozenStates
from lightning_modules.hidden_states.injection import block_entry, injected
from lightning_modules.two_models.sites import Site
from registries.model_shape import shape_of
from registries.registry import UserError
from registries.settings import FirstToken


class States(NamedTuple):
    """What both models have at the tokens of a block of text.

    Attributes:
        source: (length, source width), the source's states at the tokens that are paired with the target's.
        target: (length, target width), the target's own states.
        paired: (length,), where there is a source state.
    """

    source: Tensor
    target: Tensor
    paired: Tensor


class PairedStates:
    """The hidden states of two frozen models on the same blocks of text; each model reads each block once.

    Args:
        pairing: of their tokens.
        source: the model that is read.
        target: the model that is written to.
        sites: of both.
        cache: where the states are kept.
        source_identity: what the source's states depend on beside layer and tokens: weights, dtype, code.
        target_identity: the same of the target.
        first_token: `constant`: the first token of a text has no source state, nor has one that is paired with the
            source's first. Models look at a text's first token when there is nothing to look at, and give it a state
            that is far from all others (of 25,000 where the others' norms are 150, in the middle of SmolLM2).
    """

    def __init__(
        self,
        pairing: Pairing,
        source: nn.Module,
        target: nn.Module,
        sites: Sequence[Site],
        cache: ActivationCache,
        source_identity: Mapping[str, Any],
        target_identity: Mapping[str, Any],
        first_token: FirstToken = "constant",
    ):
        self.pairing, self.sites, self.first_token = pairing, list(sites), first_token
        self.source = FrozenStates(source, _entries(source, [site.source for site in sites]), cache, source_identity)
        self.target = FrozenStates(target, _entries(target, [site.target for site in sites]), cache, target_identity)
        self.last = shape_of(target.config).num_layers
        self.limit = shape_of(source.config).limit
        self.final = FrozenStates(target, _entries(target, [self.last]), cache, target_identity, self._from_highest)
        self._paired: dict[bytes, Paired] = {}

    def paired(self, tokens: Tensor) -> Paired:
        """The source's tokens for (length,) tokens of the target; on the CPU.

        Raises:
            UserError: the source does not read texts of that length.
        """
        key = _key(tokens)
        if key not in self._paired:
            paired = self._paired[key] = self.pairing(tokens.cpu())
            if self.limit is not None and len(paired.tokens) > self.limit.tokens:
                raise UserError(
                    f"the source reads a block of {len(tokens)} tokens as {len(paired.tokens)} of its own, more than "
                    f"{self.limit.words}: set dataset.block_size to less"
                )
        return self._paired[key]

    def reserve(self, blocks: Tensor, scored: bool) -> None:
        """Make room in the cache for blocks of the target, (blocks, length); with those states that scoring needs."""
        self.source.reserve([ModelInput(self.paired(block).tokens[None]) for block in blocks], len(blocks))
        for states in (self.target, self.final) if scored else (self.target,):
            states.reserve(list(ModelInput(blocks).rows()), len(blocks))

    def __call__(self, tokens: Tensor) -> dict[Site, States]:
        """The states at every site for a block of the target, (length,)."""
        source, paired = self.read(tokens)
        own = self.of_target(tokens)
        return {site: States(source[site], own[site], paired) for site in self.sites}

    def of_target(self, tokens: Tensor) -> dict[Site, Tensor]:
        """The target's own states at every site, (length, target width), for a block of its tokens."""
        states = self.target(ModelInput(tokens[None].to(self.target.model.device)))
        return {site: states[str(site.target)][0].to(tokens.device) for site in self.sites}

    def of_source(self, tokens: Tensor) -> dict[Site, Tensor]:
        """The source's states at every site, (source length, source width), for tokens of its own."""
        states = self.source(ModelInput(tokens[None].to(self.source.model.device)))
        return {site: states[str(site.source)][0].to(tokens.device) for site in self.sites}

    def own(self, tokens: Tensor) -> Tensor:
        """What leaves the target's last block when it reads the block itself, (length, target width)."""
        return self.final(ModelInput(tokens[None].to(self.target.model.device)))[str(self.last)][0].to(tokens.device)

    def _from_highest(self, row: ModelInput) -> AbstractContextManager:
        """The target as it goes on from its own states at the highest site."""
        highest = max(site.target for site in self.sites)
        return injected(self.target.model, highest, self.target(row)[str(highest)])

    def read(self, tokens: Tensor) -> tuple[dict[Site, Tensor], Tensor]:
        """Only what the source has at a block of the target: its states by site, and where there are any."""
        paired = self.paired(tokens)
        states, index = self.of_source(paired.tokens), paired.index.clamp(min=0)
        at_tokens = {site: states[site][index].to(tokens.device) for site in self.sites}
        return at_tokens, has_state(paired.index, self.first_token).to(tokens.device)


def has_state(index: Tensor, first_token: FirstToken) -> Tensor:
    """Where tokens have a state of the other model, given the places of the tokens paired with them, (length,)."""
    if first_token == "translate":
        return index != NONE
    paired = index > 0
    paired[0] = False
    return paired


class ShuffledStates:
    """Paired states of which the source's are of another block of the same length: right in kind, wrong in content.

    Args:
        states: the right ones.
        blocks: (blocks, length), what will be asked for; each gets the next one's.
    """

    def __init__(self, states: PairedStates, blocks: Tensor):
        self.states, self.pairing, self.sites = states, states.pairing, states.sites
        self.first_token, self.last = states.first_token, states.last
        self._next = {_key(block): following for block, following in zip(blocks, blocks.roll(-1, 0), strict=True)}

    def __call__(self, tokens: Tensor) -> dict[Site, States]:
        """As `PairedStates`."""
        source, paired = self.read(tokens)
        right = self.states(tokens)
        return {site: States(source[site], right[site].target, paired) for site in self.sites}

    def own(self, tokens: Tensor) -> Tensor:
        """As `PairedStates`."""
        return self.states.own(tokens)

    def read(self, tokens: Tensor) -> tuple[dict[Site, Tensor], Tensor]:
        """As `PairedStates`."""
        return self.states.read(self._next[_key(tokens)].to(tokens.device))


def _key(tokens: Tensor) -> bytes:
    return tokens.cpu().numpy().tobytes()


def _entries(model: nn.Module, layers: Sequence[int]) -> dict[str, Any]:
    return {str(layer): block_entry(model, layer) for layer in dict.fromkeys(layers)}
