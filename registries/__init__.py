"""The registered components, by config group. Importing this package imports no component and no torch."""

from registries.registry import Registry, UserError

ATTENTION = Registry("attention replacement", package="registries.attention")
MODELS = Registry("model", package="registries.models")

__all__ = ["ATTENTION", "MODELS", "Registry", "UserError"]
