"""Puts LoRA where a placement's table says, by PEFT, and writes and reads it as PEFT folders."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from registries.placements import CHANGES_WEIGHTS, NEEDS_DATA, Init, Linear, Row, Variant
from registries.registry import UserError

ADAPTER = "default"  # PEFT's own name for the only adapter of a model


@dataclass(frozen=True)
class Placed:
    """LoRA in a model.

    Attributes:
        rows: the placement's table.
        config: PEFT's.
        start: parameter -> its first value, where the frozen weights were changed by it.
        scores: every linear layer to choose from, with its score, where the placement went by scores.
    """

    rows: list[Row]
    config: Any
    start: Mapping[str, Tensor] = field(default_factory=dict)
    scores: Sequence[tuple[Linear, float]] = ()


def place(
    model: nn.Module,
    rows: Sequence[Row],
    alpha: float = 32.0,
    dropout: float = 0.0,
    variant: Variant = "lora",
    init: Init = "kaiming",
    batches: Callable[[], Iterable[Mapping[str, Tensor]]] | None = None,
    loss: Callable[[nn.Module, Mapping[str, Tensor]], Tensor] | None = None,
) -> Placed:
    """Add LoRA to a model, in place; it computes what it did before.

    Args:
        model: a transformers causal LM, whose weights are frozen.
        rows: the placement's table.
        alpha: additions are scaled by alpha / rank (rsLoRA: alpha / sqrt(rank)).
        dropout: share of their inputs dropped in training.
        variant: `lora` (Hu et al., arXiv 2106.09685), `rslora` (Kalajdzievski, 2312.03732) or `dora` (Liu et al.,
            2402.09353).
        init: what they start with: `kaiming`, `gaussian` and `orthogonal` from random matrices, `pissa` (Meng et al.,
            2404.02948) and `olora` (Bueyuekakyuez, 2406.01775) from the weights, `eva` (Paischer et al., 2410.07170)
            from the layers' inputs, `lora_ga` (Wang et al., 2407.05000) from the gradients.
        batches: training batches, for `eva` and `lora_ga`.
        loss: mean loss of a batch, for `lora_ga`.

    Raises:
        UserError: an init that needs batches without any, or one that changes frozen weights which are not float32.
    """
    from peft import EvaConfig, LoraConfig, LoraGAConfig, inject_adapter_in_model

    if not rows:
        raise UserError("the placement names no linear layer")
    if init in CHANGES_WEIGHTS and model.dtype != torch.float32:
        raise UserError(
            f"placement.init={init} takes its start out of the frozen weights, which are {model.dtype} here and would "
            "lose it to rounding: set model.dtype=float32"
        )
    if init in NEEDS_DATA and batches is None:
        raise UserError(f"placement.init={init} needs training data")
    rank, _ = Counter(row.rank for row in rows).most_common(1)[0]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=[row.module for row in rows],
        r=rank,
        rank_pattern={row.module: row.rank for row in rows if row.rank != rank},
        lora_alpha=alpha,
        lora_dropout=dropout,
        bias="none",
        use_rslora=variant == "rslora",
        use_dora=variant == "dora",
        init_lora_weights=True if init == "kaiming" else init,
        eva_config=EvaConfig(rho=1.0) if init == "eva" else None,  # rho 1 keeps the ranks that the table tells
        lora_ga_config=LoraGAConfig() if init == "lora_ga" else None,
    )
    found = _from_inputs(model, config, batches) if init == "eva" else {}
    if init == "lora_ga":
        _measure_gradients(model, config, batches, loss)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out")  # PEFT sets it itself, for GPT-2
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    with torch.no_grad():
        for module, directions in found.items():
            model.get_submodule(module).lora_A[ADAPTER].weight.copy_(directions)
    start = {}
    if init in CHANGES_WEIGHTS:
        start = {name: parameter.detach().clone() for name, parameter in lora_parameters(model).items()}
    return Placed(list(rows), config, start)


def _from_inputs(model: nn.Module, config: Any, batches: Callable) -> dict[str, Tensor]:
    """EVA: module -> its first principal directions of input, (rank, inputs)."""
    from peft.tuners.lora.eva import get_eva_state_dict

    from lightning_modules.inputs import batch_rows, model_inputs

    inputs = [model_inputs(batch_rows(batch)) for batch in batches()]
    model.eval()
    return get_eva_state_dict(
        model,
        inputs,
        config,
        forward_fn=lambda model, inputs: model(**inputs, use_cache=False),
        show_progress_bar=False,
    )


def _measure_gradients(model: nn.Module, config: Any, batches: Callable, loss: Callable) -> None:
    """LoRA-GA: leave the gradients of the weights of the target modules at the modules, where PEFT looks for them."""
    from peft.tuners.lora.loraga import preprocess_loraga

    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    def step() -> None:
        for batch in batches():
            loss(model, batch).backward()

    preprocess_loraga(model, config, step)
    model.requires_grad_(False).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
        parameter.grad = None


def lora_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Full name -> parameter of everything that the placement added."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if ".lora_" in name and f".{ADAPTER}." in f"{name}."
    }


def save_adapter(model: nn.Module, placed: Placed, folder: Path, base: str | None) -> None:
    """Write the additions as a folder that `peft` loads onto the plain model.

    Where the frozen weights were changed at the start (W to W - BA), the folder holds the difference of what was learnt
    and the start, at twice the rank; so it fits the plain weights W.

    Args:
        base: hub id or folder of the plain model.
    """
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config, tensors = _to_dict(placed.config), dict(lora_parameters(model))
    if placed.start:
        tensors = {name: _with_start(name, tensor, placed.start[name]) for name, tensor in tensors.items()}
        double = 2 ** (0.5 if config["use_rslora"] else 1)  # the scaling is alpha over the rank, or over its root
        config |= {"r": 2 * config["r"], "lora_alpha": double * config["lora_alpha"], "init_lora_weights": True}
        config["rank_pattern"] = {module: 2 * rank for module, rank in config["rank_pattern"].items()}
    config |= {"base_model_name_or_path": base, "inference_mode": True, "eva_config": None, "lora_ga_config": None}
    if config["init_lora_weights"] == "eva":
        config["init_lora_weights"] = True
    named = get_peft_model_state_dict(model, state_dict=tensors, adapter_name=ADAPTER)
    named = {f"base_model.model.{name}": tensor.detach().contiguous() for name, tensor in named.items()}
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))


def _with_start(name: str, tensor: Tensor, start: Tensor) -> Tensor:
    """[A, A0] and [B, -B0], whose product is BA - B0 A0; a magnitude stays as it is."""
    if ".lora_A." in name:
        return torch.cat([tensor, start], dim=0)
    return torch.cat([tensor, -start], dim=1) if ".lora_B." in name else tensor


def _to_dict(config: Any) -> dict[str, Any]:
    """A PEFT config as what goes into its JSON file."""
    plain = config.to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in plain.items()}


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Add what `save_adapter` wrote to a plain model, in place.

    Raises:
        UserError: the folder holds no adapter.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.utils import set_peft_model_state_dict
    from safetensors.torch import load_file

    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} holds no LoRA (no adapter_config.json): the run has not finished")
    inject_adapter_in_model(LoraConfig.from_pretrained(str(folder)), model, adapter_name=ADAPTER)
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
    for parameter in lora_parameters(model).values():
        parameter.data = parameter.data.float()  # as it was trained
    result = set_peft_model_state_dict(model, tensors, adapter_name=ADAPTER)
    if result.unexpected_keys:
        raise UserError(f"{folder} is of another model: it has {result.unexpected_keys[0]}")
