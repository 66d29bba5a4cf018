"""What a toroidal attention layer costs, beside the same layer with plain causal attention.

python benchmarks/attention_cost.py [--lengths 256 512] [--depths 1 2 4 8] [--rounds 15]

One attention layer of SmolLM2-135M's shape (width 576, 9 heads, 3 key/value heads), projections included, forward and
backward, fp32, batch 1. The two layers are timed in turn in one process; a ratio is the median over the rounds of
the ratio within a round.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_modules.surgery.attention_host import host
from registries import ATTENTION
from registries.model_shape import shape_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576, num_hidden_layers=1, num_attention_heads=9, num_key_value_heads=3, intermediate_size=64,
        vocab_size=64, attn_implementation="sdpa",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    plain, rotary = model.model.layers[0].self_attn, model.model.rotary_emb
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print("length  depth  plain ms  toroidal ms  ratio (median)  ratio (min - max)")
    for length in arguments.lengths:
        hidden = torch.randn(1, length, 576)
        positions = rotary(hidden, torch.arange(length)[None])
        for depth in arguments.depths:
            toroidal = copy.deepcopy(plain)
            host(toroidal, ATTENTION.build("toroidal", shape=shape_of(config).attention(0), depth=depth))
            warm_up, rounds = 3, arguments.rounds
            times = [
                (_step(plain, hidden, positions), _step(toroidal, hidden, positions)) for _ in range(warm_up + rounds)
            ][warm_up:]
            ratios = [own / base for base, own in times]
            base, own = (statistics.median(column) * 1000 for column in zip(*times, strict=True))
            spread = f"{min(ratios):.2f} - {max(ratios):.2f}"
            print(f"{length:6}  {depth:5}  {base:8.1f}  {own:11.1f}  {statistics.median(ratios):14.2f}  {spread}")


def _step(layer: torch.nn.Module, hidden: torch.Tensor, positions: tuple) -> float:
    """Seconds of one forward and backward pass."""
    states = hidden.clone().requires_grad_(True)
    start = time.perf_counter()
    output = layer(hidden_states=states, position_embeddings=positions, attention_mask=None)[0]
    output.sum().backward()
    layer.zero_grad()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
