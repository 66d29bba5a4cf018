"""What an adapter between two models is trained for: a stage of a cross-model study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from data_modules.batches import ModelInput, scored_labels
from lightning_modules.nll import IGNORED
from lightning_modules.stages.stage import Loss
from lightning_modules.training.objectives import next_token_nll
from lightning_modules.training.submodule_training import SubmoduleTraining
from lightning_modules.two_models.cross_model import BRIDGES, CrossModelModule
from lightning_modules.two_models.paired_states import States
from lightning_modules.two_models.sites import Site
from registries.settings import Contrast


@dataclass
class AdapterTraining(SubmoduleTraining):
    """Trains what translates by a weighted sum of three objectives, each a mean; what has no weight is not computed.

    * alignment: squared distance from the target's own states, over their variance (about 1 - R2 on the training text);
      per scored token, so that each counts the same however the blocks are shared among passes and processes;
    * generation: the target's next-token loss from the translated states on;
    * contrastive: InfoNCE (van den Oord et al., 2018) over cosines of centred states.

    Attributes:
        module: of both models.
        alignment_weight, generation_weight, contrastive_weight: of the objectives.
        temperature: that the cosines are divided by.
        negatives: of each token, at most: so many and one tokens of a step are drawn, and each is told from all others
            (blocks for `sequences`; of several processes, each draws from its own share).
        contrast: of single `tokens`, or of `sequences`: the mean states of blocks.
    """

    module: CrossModelModule
    alignment_weight: float = 1.0
    generation_weight: float = 0.0
    contrastive_weight: float = 0.0
    temperature: float = 0.07
    negatives: int = 127
    contrast: Contrast = "tokens"

    submodule: ClassVar = BRIDGES

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Loss:
        """The objective of a batch of blocks, times its scored tokens."""
        read = self.module.read(batch["input_ids"])
        parts = Counter()
        for site, states in read.items():
            for name, value in self._objectives(model, site, states, batch).items():
                parts[name] += value / len(read)
        total = sum(getattr(self, f"{name}_weight") * value for name, value in parts.items())
        count = int((scored_labels(batch)[:, 1:] != IGNORED).sum())
        shown = {name: value.detach() * count for name, value in parts.items()}
        if "contrastive" in shown:
            shown["contrastive_over_chance"] = shown.pop("contrastive") - self._chance(read) * count
        return Loss(total * count, count, shown)

    def _objectives(
        self, model: nn.Module, site: Site, states: States, batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        bridge = self.module.bridges[site]
        translated, objectives = self.module.translate(site, states), {}
        target, labels = states.target.float(), scored_labels(batch)
        count = (labels[:, 1:] != IGNORED).sum().clamp(min=1)
        if self.alignment_weight:
            error = (translated - target)[states.paired].square().sum()
            objectives["alignment"] = error / count / bridge.variance
        if self.generation_weight:
            with self.module.stitched(site, translated):
                nll = next_token_nll(model, ModelInput.of(batch), labels, self.workspace.loss_chunk_size)
            objectives["generation"] = nll / count
        if self.contrastive_weight:
            objectives["contrastive"] = self._info_nce(translated - bridge.mean, target - bridge.mean, states.paired)
        return objectives

    def _info_nce(self, translated: Tensor, target: Tensor, paired: Tensor) -> Tensor:
        if self.contrast == "tokens":
            anchors, positives = translated[paired], target[paired]
            chosen = torch.randperm(len(anchors))[: self.negatives + 1].to(anchors.device)
        else:
            share = paired[..., None] / paired.sum(1).clamp(min=1)[:, None, None]
            anchors, positives = (translated * share).sum(1), (target * share).sum(1)
            chosen = torch.arange(min(len(anchors), self.negatives + 1), device=anchors.device)
        cosines = normalize(anchors[chosen], dim=1) @ normalize(positives[chosen], dim=1).T
        return cross_entropy(cosines / self.temperature, torch.arange(len(chosen), device=cosines.device))

    def _chance(self, read: Mapping[Site, States]) -> float:
        """The contrastive loss of an adapter that tells nothing: ln of the number of candidates."""
        paired = next(iter(read.values())).paired
        rows = int(paired.sum()) if self.contrast == "tokens" else len(paired)
        return torch.tensor(min(rows, self.negatives + 1)).log().item()
