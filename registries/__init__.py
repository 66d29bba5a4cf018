"""The registered components, by config group. Importing this package imports no component and no torch."""

from registries.registry import Registry, UserError

ATTENTION = Registry("attention replacement", package="registries.attention")
PLACEMENTS = Registry("LoRA placement", package="registries.placements")
ADAPTERS = Registry("adapter", package="registries.adapters")
COMPRESSORS = Registry("compressor", package="registries.compressors")
EXPANSIONS = Registry("expansion", package="registries.expansions")
MODELS = Registry("model", package="registries.models")

__all__ = ["ADAPTERS", "ATTENTION", "COMPRESSORS", "EXPANSIONS", "MODELS", "PLACEMENTS", "Registry", "UserError"]
