"""Peak memory of a training step: all tensors that are alive at once, counted as they are made and freed.

python benchmarks/memory.py [--shape phi2] [--layers spread:4] [--depth 2] [--length 256] [--checkpointing] [--chunk 64]

A model of Phi-2's shape (or a small one) with random weights: frozen in bf16, the attention of some layers replaced by
toroidal attention and trained by AdamW in fp32. The count knows nothing of the machine; `resident` is what the process
grew by at its peak, which has the libraries' own buffers in it, and shows on a small model that the count is right.
"""

from __future__ import annotations

import argparse
import threading
import time
import weakref

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from data_modules.batches import ModelInput
from lightning_modules.surgery.replaced_attention import replace_attention
from lightning_modules.surgery.trained_parameters import attention_parameters, thaw
from lightning_modules.training.objectives import next_token_nll
from registries.layers import resolve_layers

SHAPES = {
    "phi2": {
        "hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 10240,
        "vocab_size": 51200, "partial_rotary_factor": 0.4,
    },
    "small": {
        "hidden_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 16, "intermediate_size": 4096,
        "vocab_size": 16384, "partial_rotary_factor": 0.5,
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="phi2")
    parser.add_argument("--layers", default="spread:4")
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--chunk", type=int, default=None)
    arguments = parser.parse_args()
    before = psutil.Process().memory_info().rss
    with _Peak() as peak:
        counted, loss = _step(arguments)
    print(f"{arguments.shape}, layers {arguments.layers}, depth {arguments.depth}, {arguments.length} tokens: ", end="")
    print(f"counted {counted / 2**30:.2f} GiB ({counted / 1e9:.2f} GB), ", end="")
    print(f"resident +{(peak.bytes - before) / 2**30:.2f} GiB, loss {loss:.3f}")


def _step(arguments: argparse.Namespace) -> tuple[int, float]:
    """Two optimizer steps. Returns the most bytes that were alive at once, and the loss."""
    torch.manual_seed(0)
    with AliveBytes() as alive:
        config = AutoConfig.for_model("phi", **SHAPES[arguments.shape])
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).requires_grad_(False).eval()
        layers = resolve_layers(arguments.layers, config.num_hidden_layers)
        replace_attention(model, "toroidal", layers, options={"depth": arguments.depth})
        parameters = attention_parameters(model, layers)
        thaw(model, parameters)
        if arguments.checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
            for block in model.model.layers:
                block.training = True
        optimizer = torch.optim.AdamW(parameters.values(), lr=1e-4)
        text = torch.randint(config.vocab_size, (1, arguments.length))
        for _ in range(2):
            loss = next_token_nll(model, ModelInput(text), text, arguments.chunk) / (arguments.length - 1)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return alive.peak, loss.item()


class AliveBytes(TorchDispatchMode):
    """Bytes of all storages that operations within this context have made and nobody has freed yet."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage.data_ptr() == 0 or id(storage) in self._known:
            return
        self._known.add(id(storage))
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, id(storage), storage.nbytes())

    def _free(self, identity: int, size: int) -> None:
        self._known.discard(identity)
        self.now -= size


class _Peak:
    """The process's largest resident size within a context."""

    def __enter__(self) -> _Peak:
        self.bytes, self._process, self._stop = 0, psutil.Process(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.bytes = max(self.bytes, self._process.memory_info().rss)
            time.sleep(0.01)


if __name__ == "__main__":
    main()
