"""What the activation cache saves: next-token steps of an upper layer, and the transfer of one layer.

python benchmarks/cached_training.py [model=...] [--layers 20 29] [--blocks 4] [--rounds 5]

In one process and in turn, after a first epoch that fills the cache: next-token steps that train the attention of one
layer (toroidal, depth 2), with the layers below it computed and read back; and transfer steps of that layer. Beside the
ratio stands the one that the saved operations predict: forward passes of the layers below, of all that a step computes.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from typing import Any

import torch

import train
from data_modules import build_data_module
from lightning_modules.config import read_config
from lightning_modules.load import load_language_model, operate, workspace
from lightning_modules.stages import STAGES
from lightning_modules.stages.stage import Stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, such as model=tiny_phi")
    parser.add_argument("--layers", type=int, nargs="+", default=[20, 29])
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print("layer  step s  from cache s  ratio  predicted  share  weights differ by  transfer s  of a step")
    for layer in arguments.layers:
        print(_row(layer, arguments))


def _row(layer: int, arguments: argparse.Namespace) -> str:
    sides = {cached: _Side(layer, cached, arguments) for cached in (False, True)}
    for side in sides.values():
        side.epoch()  # fills the cache
    rounds = [[sides[cached].epoch() for cached in (False, True)] for _ in range(arguments.rounds)]
    plain, cached = (statistics.median(column) for column in zip(*rounds, strict=True))
    weights = [torch.cat([p.detach().flatten() for p in side.parameters]) for side in sides.values()]
    difference = (weights[0] - weights[1]).abs().max().item()
    transfer = statistics.median([sides[True].epoch("transfer") for _ in range(arguments.rounds + 1)][1:])
    predicted = _predicted(sides[True].module.model, layer)
    return (
        f"{layer:5}  {plain:6.3f}  {cached:12.3f}  {plain / cached:5.2f}  {predicted:9.2f}  "
        f"{plain / cached / predicted:5.2f}  {difference:17.1e}  {transfer:10.4f}  1/{plain / transfer:.0f}"
    )


class _Side:
    """The same training with or without the cache."""

    def __init__(self, layer: int, cached: bool, arguments: argparse.Namespace):
        overrides = ["replacement=toroidal", f"replacement.layers=[{layer}]", *arguments.overrides]
        cfg = read_config(train.compose([*overrides, f"activations.cache={str(cached).lower()}"]))
        loader = cfg.model_loader()
        self.module = load_language_model(cfg, loader, loader.tokenizer())
        operate(self.module, cfg)
        data = build_data_module(cfg.plain, loader.tokenizer())
        cfg = dataclasses.replace(cfg, cache_dir=tempfile.mkdtemp())  # for activations
        self.blocks = data.train_blocks[: arguments.blocks]
        shared = workspace(self.module, cfg, train_blocks=self.blocks)
        self.stages = {
            name: STAGES.build(name, workspace=shared, steps=1000, lr=1e-3, batch_size=1)
            for name in ("next_token", "transfer")
        }
        self.stage: Stage | None = None
        self.parameters: list[Any] = []

    def epoch(self, name: str = "next_token") -> float:
        """Train once over the blocks. Returns the median seconds of a step."""
        if self.stage is not self.stages[name]:
            self.stage = self.stages[name]
            self.module.begin(name, self.stage)
            self.stage.start(self.module.model)
            self.parameters = list(self.module.trained_parameters().values())
            self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4)
        times = []
        for block in self.blocks:
            start = time.perf_counter()
            total, count, _ = self.stage.loss(self.module.model, {"input_ids": block[None]})
            (total / count).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            times.append(time.perf_counter() - start)
        return statistics.median(times)


def _predicted(model: Any, layer: int) -> float:
    """Operations of a step over those of a step from the cache; those of a linear layer go with its weights.

    Forward: all layers and the head. Backward, to the inputs: the layers from `layer` on and the head.
    """
    blocks = [sum(p.numel() for p in block.parameters()) for block in model.model.layers]
    head = model.get_output_embeddings().weight.numel()
    above = 2 * (sum(blocks[layer:]) + head)
    return (above + sum(blocks[:layer])) / above


if __name__ == "__main__":
    main()
