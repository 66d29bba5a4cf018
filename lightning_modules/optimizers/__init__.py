"""Optimizers (config group `optimizer`), a file each: functions from the trained parameters to a torch optimizer."""

from registries.registry import Registry

OPTIMIZERS = Registry("optimizer", package="lightning_modules.optimizers")
