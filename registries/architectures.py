"""The role map: where blocks, attention, MLP and their linear layers live in each model family.

A family is one entry of `ARCHITECTURES`, named by the `model_type` of its Hugging Face config. Everything that touches
a model's insides goes through it, so that a new family is supported by one new entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from registries.registry import Registry, UserError, nearest

ARCHITECTURES = Registry("model family")


@dataclass(frozen=True)
class AttentionShape:
    """What an attention replacement must know of the layer it works in.

    Attributes:
        num_heads: query heads.
        num_kv_heads: key and value heads; fewer than `num_heads` where they are grouped.
        head_width: channels of one head.
        rotary_width: how many leading channels of a head the rotary codes turn (0: the family has none). Channel m
            forms a pair with channel m + rotary_width / 2, as in all supported families.
        rotary_base: base of the geometric series of rotary frequencies.
    """

    num_heads: int
    num_kv_heads: int
    head_width: int
    rotary_width: int = 0
    rotary_base: float = 10_000.0


OUTPUT_ROLES = ("attention.output", "mlp.down")  # what they give is added to the hidden states


@dataclass(frozen=True)
class Architecture:
    """The module paths of one model family.

    Attributes:
        blocks: path from the causal LM to its list of blocks; None where the family has none.
        attention: path from a block to its attention layer; None where the family has none.
        roles: role -> path from a block to the linear layer that plays it.
        key_names: config key -> this family's name for it, where that differs from Llama's.
        defaults: config key -> its value in configs that leave it out.
        transposed: whether the linear layers hold weights as (inputs, outputs).
        logits: a function from (output of the output head, the model's config) to the logits, for families that change
            them after the head (Granite divides them by `logits_scaling`); None: the output is the logits.
        closing_norms: parameters of a block, by path, that scale what it adds to the hidden states -> their value at
            which it adds nothing; empty where the output projections are added as they are.
        linears: a function from the config to name -> (inputs, outputs) of the linear layers, where there are no roles.
    """

    blocks: str | None
    attention: str | None
    roles: Mapping[str, str]
    key_names: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    transposed: bool = False
    logits: Callable[[Any, Any], Any] | None = None
    closing_norms: Mapping[str, float] = field(default_factory=dict)
    linears: Callable[[Any], Mapping[str, tuple[int, int]]] | None = None

    def silent_value(self, name: str) -> float | None:
        """The value of a parameter of a block (by path) at which the block adds nothing; None: of any value."""
        if self.closing_norms:
            return self.closing_norms.get(name)
        return 0.0 if name.rpartition(".")[0] in {self.roles[role] for role in OUTPUT_ROLES} else None

    def attention_layers(self, model: Any) -> list[Any]:
        """The attention layers of a model, in order."""
        return [block.get_submodule(self.attention) for block in model.get_submodule(self.blocks)]

    def attention_path(self, layer: int) -> str:
        """Full module name of one layer's attention."""
        return f"{self.blocks}.{layer}.{self.attention}"


def architecture_of(model_type: str) -> Architecture:
    """The role map of a family. Raises UserError for an unknown family; the message says how to add one."""
    if model_type not in ARCHITECTURES:
        raise UserError(
            f"model family {model_type!r} is not known. Known: {', '.join(ARCHITECTURES.names())}. To add it, register "
            f"an Architecture for it: ARCHITECTURES.register({model_type!r})(Architecture(blocks=..., attention=..., "
            "roles=...)), in registries/architectures.py or in a module named in plugins=[...]"
        )
    return ARCHITECTURES.get(model_type)


def resolve_roles(architecture: Architecture, roles: Sequence[str]) -> list[str]:
    """The roles that role names and prefixes (`attention`, `mlp.up`) stand for, in the family's order.

    Raises:
        UserError: a name stands for no role of this family.
    """
    known = list(architecture.roles)
    resolved = set()
    for name in roles:
        matching = {role for role in known if role == name or role.startswith(f"{name}.")}
        if not matching:
            raise UserError(f"role {name!r} is none of this model's{nearest(name, known)} Allowed: {', '.join(known)}")
        resolved |= matching
    return [role for role in known if role in resolved]


def modules_of_roles(architecture: Architecture, roles: Sequence[str], layers: Sequence[int]) -> list[str]:
    """Full module names of the linear layers that play these roles in these layers."""
    paths = [architecture.roles[role] for role in resolve_roles(architecture, roles)]
    return [f"{architecture.blocks}.{layer}.{path}" for layer in layers for path in paths]


_LLAMA_ROLES = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}

for _family in ("llama", "mistral", "qwen2", "qwen3"):
    ARCHITECTURES.register(_family)(Architecture("model.layers", "self_attn", _LLAMA_ROLES))

_GEMMA3_DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "sliding_window_pattern": 6,
}
# Its norms multiply by 1 + weight.
_GEMMA3_NORMS = {"post_attention_layernorm.weight": -1.0, "post_feedforward_layernorm.weight": -1.0}
for _family in ("gemma3_text", "gemma3"):  # the second is multimodal; its language model is read
    ARCHITECTURES.register(_family)(
        Architecture("model.layers", "self_attn", _LLAMA_ROLES, defaults=_GEMMA3_DEFAULTS, closing_norms=_GEMMA3_NORMS)
    )

ARCHITECTURES.register("phi")(
    Architecture(
        "model.layers",
        "self_attn",
        {
            "attention.query": "self_attn.q_proj",
            "attention.key": "self_attn.k_proj",
            "attention.value": "self_attn.v_proj",
            "attention.output": "self_attn.dense",
            "mlp.up": "mlp.fc1",
            "mlp.down": "mlp.fc2",
        },
    )
)
ARCHITECTURES.register("gpt2")(
    Architecture(
        "transformer.h",
        "attn",
        {
            "attention.qkv": "attn.c_attn",
            "attention.output": "attn.c_proj",
            "mlp.up": "mlp.c_fc",
            "mlp.down": "mlp.c_proj",
        },
        {
            "num_attention_heads": "n_head",
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "max_position_embeddings": "n_positions",
            "intermediate_size": "n_inner",
        },
        transposed=True,
    )
)
ARCHITECTURES.register("gpt_neox")(
    Architecture(
        "gpt_neox.layers",
        "attention",
        {
            "attention.qkv": "attention.query_key_value",
            "attention.output": "attention.dense",
            "mlp.up": "mlp.dense_h_to_4h",
            "mlp.down": "mlp.dense_4h_to_h",
        },
    )
)


def _linears_of_recurrence(config: Any) -> Mapping[str, tuple[int, int]]:
    from registries.models.recurrence import linear_layers

    return linear_layers(config)


ARCHITECTURES.register("recurrent_lm")(Architecture(None, None, {}, linears=_linears_of_recurrence))
