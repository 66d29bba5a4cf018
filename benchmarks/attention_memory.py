"""How the memory of toroidal attention grows with the length: in proportion.

python benchmarks/attention_memory.py [--lengths 1024 2048 4096 8192] [--depths 1 2 4]

One attention layer of SmolLM2-135M's shape, forward and backward, fp32, batch 1: bytes of all tensors that are alive at
once at the peak, per token, for the backend that a CPU uses and for the plain reference (up to 2,048 tokens, as its
memory grows with the square).
"""

from __future__ import annotations

import argparse

import torch
from memory import AliveBytes

from registries import ATTENTION
from registries.architectures import AttentionShape

SHAPE = AttentionShape(num_heads=9, num_kv_heads=3, head_width=64, rotary_width=64)
REFERENCE_LENGTH = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 4])
    arguments = parser.parse_args()
    print("length  depth  sdpa MB  KB per token  reference MB")
    for depth in arguments.depths:
        for length in arguments.lengths:
            chunked = _peak(length, depth, "sdpa")
            plain = f"{_peak(length, depth, 'reference') / 1e6:12,.0f}" if length <= REFERENCE_LENGTH else ""
            print(f"{length:6}  {depth:5}  {chunked / 1e6:7,.0f}  {chunked / 1e3 / length:12.1f}  {plain}")


def _peak(length: int, depth: int, backend: str) -> int:
    torch.manual_seed(0)
    core = ATTENTION.build("toroidal", shape=SHAPE, depth=depth, backend=backend)
    with AliveBytes() as alive:
        query, key, value = (
            torch.randn(1, heads, length, SHAPE.head_width, requires_grad=True)
            for heads in (SHAPE.num_heads, SHAPE.num_kv_heads, SHAPE.num_kv_heads)
        )
        core(query, key, value, None, SHAPE.head_width**-0.5, 0, 0).sum().backward()
    return alive.peak


if __name__ == "__main__":
    main()
