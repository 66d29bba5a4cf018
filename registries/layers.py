"""Layer specs: how a user names layers, wherever layers are named."""

from __future__ import annotations

import re
from collections.abc import Sequence

from registries.registry import UserError

LayerSpec = str | int | list[int]

NUMBER, SHARE = r"\d{1,9}", r"\d{1,9}\.?\d{0,9}"  # longer numbers are mistakes, and Python may refuse to read them
FORMS = "[0,16], [-1], all, first:4, last:4, ends:2, every:4, spread:4, 8-15; first:25%, at:50%"


def resolve_layers(spec: str | int | Sequence[int], num_layers: int) -> list[int]:
    """The layer indices (0 to num_layers - 1, ascending) that a spec names.

    `ends:n` is the first n and the last n layers; `every:n` is 0, n, 2n, ...; `spread:n` is n layers at equal distance,
    from 0 on; `8-15` includes both; negative indices count from the end. `first`, `last`, `ends` and `spread` also take
    a share of all layers (`first:25%`), which is at least one layer. `at:50%` is the layer at this relative depth.

    Raises:
        UserError: the spec has no known form, or names a layer out of range or a layer twice.
    """
    if isinstance(spec, str):
        layers = _parse(spec.strip(), num_layers)
    else:
        layers = [spec] if isinstance(spec, int) else list(spec)
    allowed = f"this model's layers are 0 to {num_layers - 1} (or -{num_layers} to -1)"
    wrong = [layer for layer in layers if isinstance(layer, bool) or not isinstance(layer, int)]
    if wrong or not layers:
        raise UserError(f"layers={spec!r} is not a layer spec. Allowed: {FORMS}")
    outside = [layer for layer in layers if not -num_layers <= layer < num_layers]
    if outside:
        raise UserError(f"layers={spec!r} names layer {outside[0]}, but {allowed}")
    resolved = [layer % num_layers for layer in layers]
    twice = sorted({layer for layer in resolved if resolved.count(layer) > 1})
    if twice:
        raise UserError(f"layers={spec!r} names layer {twice[0]} twice; name each layer once ({allowed})")
    return sorted(resolved)


def _parse(spec: str, num_layers: int) -> list[int]:
    """The layers that a text names, not yet checked; none for a text of no known form."""
    indices = list(range(num_layers))
    if spec == "all":
        return indices
    if span := re.fullmatch(rf"({NUMBER})-({NUMBER})", spec):
        first, last = int(span[1]), int(span[2])
        return list(range(first, min(last, max(first, num_layers)) + 1))  # one layer beyond the model causes the error
    if depth := re.fullmatch(rf"at:({SHARE})%", spec):
        if float(depth[1]) > 100:
            raise UserError(f"layers={spec!r} lies beyond the last layer, which is at:100%")
        return [min(num_layers - 1, int(num_layers * float(depth[1]) / 100))]
    if counted := re.fullmatch(
        rf"(?:(first|last|ends|every|spread):([1-9]\d{{0,8}})|(first|last|ends|spread):({SHARE})%)", spec
    ):
        form, count = counted[1] or counted[3], counted[2]
        share = float(counted[4] or 0)
        if not count and not share:
            raise UserError(f"layers={spec!r} asks for no layer")
        count = int(count) if count else max(1, int(num_layers * share / 100 + 0.5))
        if count > num_layers:
            raise UserError(f"layers={spec!r} asks for {count} layers, but this model has {num_layers}")
        return {
            "first": indices[:count],
            "last": indices[-count:],
            "ends": sorted({*indices[:count], *indices[-count:]}),
            "every": indices[::count],
            "spread": [index * num_layers // count for index in range(count)],
        }[form]
    if re.fullmatch(rf"-?{NUMBER}", spec):
        return [int(spec)]
    return []
