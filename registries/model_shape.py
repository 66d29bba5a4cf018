"""The dimensions of a model, read from its config alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from registries.architectures import AttentionShape, architecture_of
from registries.registry import UserError


class LengthLimit(NamedTuple):
    """The number of tokens up to which a model reads all texts alike, and what limits them, in words."""

    tokens: int
    words: str


@dataclass(frozen=True)
class ModelShape:
    """A causal language model's dimensions.

    `rotary_bases` holds one rotary base per layer, since some families mix two. `limit` is None where texts may have
    any length.
    """

    family: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    rotary_width: int
    rotary_bases: tuple[float, ...]
    vocab_size: int
    max_positions: int
    intermediate_size: int
    limit: LengthLimit | None = None

    def attention(self, layer: int) -> AttentionShape:
        """The shape of one layer's attention."""
        return AttentionShape(
            self.num_heads, self.num_kv_heads, self.head_width, self.rotary_width, self.rotary_bases[layer]
        )


def raw_config(config: Any) -> dict[str, Any]:
    """The keys of a config: a mapping (a parsed `config.json`) or a transformers config."""
    return dict(config) if isinstance(config, Mapping) else config.to_dict()


def shape_of(config: Any) -> ModelShape:
    """The shape of a model from its config: a mapping (a parsed `config.json`) or a transformers config.

    Raises:
        UserError: the family is unknown, or the config lacks a key or has a wrong value.
    """
    raw = raw_config(config)
    language_config = _mapping(raw, "text_config") or raw  # a multimodal config holds that of its language model
    raw = {"model_type": raw.get("model_type", "(none)"), **language_config}
    family = raw["model_type"]
    architecture = architecture_of(family)
    if architecture.attention is None:
        raise UserError(
            f"a {raw.get('recurrence', family)} model has no attention, and no blocks with roles: replacements, "
            "placements on roles, adapters and compressors need them. Take another model, or place LoRA by names "
            "(placement=suffix)"
        )
    raw = {**architecture.defaults, **raw}

    def dimension(key: str, default: int | None = None) -> int:
        name = architecture.key_names.get(key, key)
        number = default if raw.get(name) is None else raw[name]
        if number is None:
            raise UserError(f"the config of this {family!r} model has no key {name!r}")
        if not isinstance(number, int) or number < 1:
            raise UserError(f"the config of this {family!r} model says {name}: {number!r}, not a number from 1 on")
        return number

    num_heads, hidden_size = dimension("num_attention_heads"), dimension("hidden_size")
    num_layers = dimension("num_hidden_layers")
    head_width = dimension("head_dim", hidden_size // num_heads)
    bases, fraction = _rotary(raw, num_layers)
    rotary_width = 0 if family == "gpt2" else int(head_width * fraction)
    max_positions = dimension("max_position_embeddings")
    return ModelShape(
        family=family,
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=dimension("num_key_value_heads", num_heads),
        head_width=head_width,
        rotary_width=rotary_width,
        rotary_bases=bases,
        vocab_size=dimension("vocab_size"),
        max_positions=max_positions,
        intermediate_size=dimension("intermediate_size", 4 * hidden_size),
        limit=_length_limit(raw, max_positions, learned=not rotary_width),
    )


def linear_sizes(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """Role -> (inputs, outputs) of the linear layers that play it, in the family's order."""
    hidden, mlp = shape.hidden_size, shape.intermediate_size
    heads, kv_heads = shape.num_heads * shape.head_width, shape.num_kv_heads * shape.head_width
    sizes = {
        "attention.query": (hidden, heads),
        "attention.key": (hidden, kv_heads),
        "attention.value": (hidden, kv_heads),
        "attention.qkv": (hidden, heads + 2 * kv_heads),
        "attention.output": (heads, hidden),
        "mlp.gate": (hidden, mlp),
        "mlp.up": (hidden, mlp),
        "mlp.down": (mlp, hidden),
    }
    roles = architecture_of(shape.family).roles
    unknown = [role for role in roles if role not in sizes]
    if unknown:
        raise UserError(f"the size of role {unknown[0]!r} of {shape.family} is not known. Known: {', '.join(sizes)}")
    return {role: sizes[role] for role in roles}


# The share of a head's channels that is turned where older configs of these families do not say it.
_PARTIAL_ROTARY = {"phi": 0.5, "gpt_neox": 0.25}
# Values that multimodal configs of Gemma 3 leave out of their `text_config`, as transformers understands them.
_LOCAL_BASE, _GLOBAL_BASE = 10_000.0, 1_000_000.0


def _rotary(raw: Mapping[str, Any], num_layers: int) -> tuple[tuple[float, ...], float]:
    """Rotary base of each layer, and the share of a head's channels that is turned.

    transformers 5 writes `rope_parameters` (per layer type where a family mixes them); older configs have the keys
    at the top level.
    """
    rope, types = _mapping(raw, "rope_parameters"), raw.get("layer_types")
    pattern = raw.get("sliding_window_pattern")
    if not types and pattern:  # older configs of Gemma 3
        types = [("sliding_attention", "full_attention")[(layer + 1) % pattern == 0] for layer in range(num_layers)]
        local = raw.get("rope_local_base_freq") or _LOCAL_BASE
        bases = {"sliding_attention": local, "full_attention": raw.get("rope_theta") or _GLOBAL_BASE}
        rope = {kind: {"rope_theta": base, **(rope.get(kind) or {})} for kind, base in bases.items()}
    if types and all(isinstance(rope.get(kind), Mapping) for kind in set(types)):
        if len(types) != num_layers:
            raise UserError(f"the config of this model has {num_layers} layers, but {len(types)} layer_types")
        return tuple(_base(rope[kind].get("rope_theta", 10_000.0)) for kind in types), 1.0
    base = rope.get("rope_theta") or raw.get("rope_theta") or raw.get("rotary_emb_base") or 10_000.0
    fraction = rope.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or raw.get("rotary_pct")
    return (_base(base),) * num_layers, float(fraction or _PARTIAL_ROTARY.get(raw.get("model_type", ""), 1.0))


def _base(value: Any) -> float:
    if not isinstance(value, (int, float)) or value <= 0:
        raise UserError(f"the config of this model says rope_theta: {value!r}, not a number above 0")
    return float(value)


def _mapping(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = raw.get(key) or {}
    if not isinstance(value, Mapping):
        raise UserError(f"the config of this model says {key}: {value!r}, not a mapping from names to values")
    return value


def _length_limit(raw: Mapping[str, Any], max_positions: int, learned: bool) -> LengthLimit | None:
    """The length up to which the beginning of a longer text is read as it is read alone.

    Rotary codes that follow the length (`dynamic`, `longrope`) turn a token differently in a longer text, and
    transformers keeps the codes of the longest text that a model has read for the texts after it.
    """
    if learned:
        return LengthLimit(max_positions, f"the {max_positions} positions that this model learned")
    rope, older = _mapping(raw, "rope_parameters"), _mapping(raw, "rope_scaling")
    for scaling in (rope, older, *(kind for kind in rope.values() if isinstance(kind, Mapping))):
        name = str(scaling.get("rope_type") or scaling.get("type"))
        if "dynamic" in name or name == "longrope":
            original = scaling.get("original_max_position_embeddings") or raw.get("original_max_position_embeddings")
            tokens = max_positions if "dynamic" in name else original or max_positions
            words = f"the {tokens} tokens up to which its rotary codes (rope_type {name}) are the same for all texts"
            return LengthLimit(tokens, words)
    return None
