"""What training a model costs, in floating-point operations."""

from __future__ import annotations

from torch import nn

from registries.architectures import ARCHITECTURES
from registries.model_shape import shape_of


def training_flops(model: nn.Module, block_size: int) -> float:
    """Floating-point operations that training takes for a token of a block.

    Six for each weight that a token is multiplied by (two in the forward pass, four in the backward pass), and
    12 x layers x width of all heads x block size for attention, whose mask is not made use of (Chowdhery et al., 2022,
    PaLM, appendix B). An embedding is looked up, not multiplied by, unless the output head shares it.
    """
    weights = sum(parameter.numel() for parameter in model.parameters())
    embedding = model.get_input_embeddings().weight
    if model.get_output_embeddings().weight is not embedding:
        weights -= embedding.numel()
    family = model.config.get_text_config().model_type
    if family not in ARCHITECTURES or ARCHITECTURES.get(family).attention is None:
        return 6.0 * weights
    shape = shape_of(model.config)
    if family == "gpt2":  # whose positions are looked up too
        weights -= shape.max_positions * shape.hidden_size
    return 6.0 * weights + 12.0 * shape.num_layers * shape.num_heads * shape.head_width * block_size
