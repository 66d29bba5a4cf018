"""Puts LoRA where a placement's table says, by PEFT."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from data_modules.batches import ModelInput, is_real
from registries.placements.placement import CHANGES_WEIGHTS, NEEDS_DATA, Init, Linear, Row, Variant
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


def place_lora(
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
    from peft import EvaConfig, LoraConfig, LoraGAConfig

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
    directions_of = _from_inputs(model, config, rows, batches) if init == "eva" else {}
    if init == "lora_ga":
        _measure_gradients(model, config, batches, loss)
    inject(model, config, ADAPTER)
    with torch.no_grad():
        for module, directions in directions_of.items():
            model.get_submodule(module).lora_A[ADAPTER].weight.copy_(directions)
        if init == "orthogonal":  # drawn anew in float32: rounded matrices are not orthogonal, and BA would not be 0
            for parameter in lora_parameters(model).values():
                parameter.data = parameter.data.float()
            for row in rows:
                layer = model.get_submodule(row.module)
                weight = layer.get_base_layer().weight
                kept, weight.data = weight.data, weight.data.float()  # whose dtype PEFT would round them to
                layer.orthogonal_init(ADAPTER)
                weight.data = kept
    start = {}
    if init in CHANGES_WEIGHTS:
        start = {name: parameter.detach().clone() for name, parameter in lora_parameters(model).items()}
    return Placed(list(rows), config, start)


def inject(model: nn.Module, config: Any, adapter: str) -> None:
    """Put PEFT's layers where its config says, in place, in the mode (training or not) that the model is in."""
    from peft import inject_adapter_in_model

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out")  # PEFT sets it itself, for GPT-2
        inject_adapter_in_model(config, model, adapter_name=adapter)
    model.train(model.training)


def _from_inputs(model: nn.Module, config: Any, rows: Sequence[Row], batches: Callable) -> dict[str, Tensor]:
    """EVA: module -> its first principal directions of input, (rank, inputs).

    Once for each rank, as PEFT gives layers that share their input one rank.
    """
    from peft.tuners.lora.eva import get_eva_state_dict

    def forward(model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
        # The mask tells EVA what is filling; to the model it would hide that examples are apart.
        return model(**{key: tensor for key, tensor in inputs.items() if key != "attention_mask"}, use_cache=False)

    model.eval()
    directions_of: dict[str, Tensor] = {}
    for rank in sorted({row.rank for row in rows}):
        modules = [row.module for row in rows if row.rank == rank]
        inputs = _joined([{**batch} for batch in batches()], rank)
        of_rank = replace(config, r=rank, rank_pattern={}, target_modules=modules)
        directions_of |= get_eva_state_dict(model, inputs, of_rank, forward_fn=forward, show_progress_bar=False)
    return directions_of


def _joined(batches: Sequence[Mapping[str, Tensor]], tokens: int) -> list[dict[str, Tensor]]:
    """Inputs of a model, with so many real tokens in each: a decomposition needs at least its rank."""
    joined, gathered = [], []
    for batch in batches:
        gathered.append({**ModelInput.of(batch).arguments, "attention_mask": is_real(batch)})
        if sum(int(inputs["attention_mask"].sum()) for inputs in gathered) >= tokens:
            joined.append({key: torch.cat([inputs[key] for inputs in gathered]) for key in gathered[0]})
            gathered = []
    if not joined:
        raise UserError(
            f"placement.init=eva needs at least as many tokens as the rank, {tokens}, and the {len(batches)} batches "
            "that it looks at have less: set placement.rank to less, or dataset.batch_size to more"
        )
    return joined


def _measure_gradients(model: nn.Module, config: Any, batches: Callable, loss: Callable) -> None:
    """LoRA-GA: leave the gradients of the weights of the target modules at the modules, where PEFT looks for them."""
    from peft.tuners.lora.loraga import preprocess_loraga

    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    def step() -> None:
        model.eval()  # PEFT has set it to training, and dropout would be measured too
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


def train_dropouts(model: nn.Module) -> None:
    """Set the dropouts of LoRA that trains to training; they have no parameters to tell them from frozen ones."""
    for module in model.modules():
        if hasattr(module, "lora_dropout"):
            for adapter, dropout in module.lora_dropout.items():
                dropout.train(module.lora_A[adapter].weight.requires_grad)


def merge(model: nn.Module) -> None:
    """Add the additions to the weights that they belong to, and leave plain linear layers behind, in place.

    A weight keeps its dtype; the sum is rounded to it once.
    """
    for name in {name.partition(".lora_")[0] for name in lora_parameters(model)}:
        layer = model.get_submodule(name)
        weight = layer.get_base_layer().weight
        dtype, weight.data = weight.dtype, weight.data.float()
        layer.merge(adapter_names=[ADAPTER])
        weight.data = weight.data.to(dtype)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer.get_base_layer())


def plain_weights(model: nn.Module, placed: Placed, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Trained weights that fit what `save_lora_folder` writes.

    Frozen weights that were changed at the start (W to W - B0 A0) and then trained get B0 A0 back, which the saved
    additions take off. The additions themselves are left out.
    """
    lora = lora_parameters(model)
    weights = {name: tensor.detach() for name, tensor in trained.items() if name not in lora}
    for row in placed.rows:
        name, layer = f"{row.module}.base_layer.weight", model.get_submodule(row.module)
        if placed.start and name in weights:
            down, up = (placed.start[f"{row.module}.lora_{side}.{ADAPTER}.weight"] for side in "AB")
            taken = (up.float() @ down.float()) * layer.scaling[ADAPTER]
            weights[name] = weights[name] + (taken.T if layer.fan_in_fan_out else taken)
    return weights
