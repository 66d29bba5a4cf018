"""Training speed of context-vector models over that of an LSTM with as many parameters.

python benchmarks/recurrent_training.py [--updates gated,linear] [--lengths 64,256] [--precision bf16-mixed]

A step is what `train.py` does: forward pass, loss, backward pass, AdamW. The models take turns, so that whatever else
the machine does meets both.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from data_modules.batches import ModelInput
from lightning_modules.dtypes import in_precision
from lightning_modules.training.objectives import next_token_nll
from registries import MODELS

VOCABULARY = 1000


class Training:
    """A model that is trained on random tokens."""

    def __init__(self, name: str, precision: str, **options: object):
        torch.manual_seed(0)
        self.model = MODELS.build(name, num_tokens=VOCABULARY, **options).model(torch.float32).train()
        self.size = sum(parameter.numel() for parameter in self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4)
        self.precision, self.seconds = precision, []

    def step(self, tokens: torch.Tensor) -> None:
        start = time.perf_counter()
        with in_precision(self.precision, tokens.device):
            loss = next_token_nll(self.model, ModelInput(tokens), tokens) / tokens.numel()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", default="gated,linear")
    parser.add_argument("--lengths", default="64,256")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed"])
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, batch {arguments.batch}, {arguments.precision}")
    for length in map(int, arguments.lengths.split(",")):
        gated = Training("context_lm", arguments.precision, num_layers=arguments.layers)
        models = {
            update: Training(
                "context_lm", arguments.precision, num_layers=arguments.layers, update=update, parameters=gated.size
            )
            for update in arguments.updates.split(",")
        } | {"lstm": Training("lstm", arguments.precision, parameters=gated.size)}
        tokens = torch.randint(VOCABULARY, (arguments.batch, length), generator=torch.Generator().manual_seed(0))
        for step in range(arguments.steps + 2):
            for training in models.values():
                training.step(tokens)
                if step < 2:  # which warm up
                    training.seconds.clear()
        medians = {name: statistics.median(training.seconds) for name, training in models.items()}
        for name, training in models.items():
            speed = tokens.numel() / medians[name]
            print(
                f"{length} tokens, {name}: {training.size:,} parameters, {speed:,.0f} tokens/s, "
                f"{medians['lstm'] / medians[name]:.2f} of the LSTM"
            )


if __name__ == "__main__":
    main()
