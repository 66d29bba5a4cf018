"""Checks a command line, every job of a sweep, before anything expensive starts; composes the config of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from registries.option import CONF
from registries.registry import UserError
from studies.config.composer import Composer
from studies.config.overrides import as_typed, read_lines, shown
from studies.config.plugin_options import load_plugins, without_search_path


def compose(overrides: Sequence[str], config_name: str = "config") -> DictConfig:
    """The checked config that these overrides make.

    Raises:
        UserError: everything that is wrong with it, in one error.
    """
    start, errors = load_plugins(overrides), []
    parsed = read_lines(without_search_path(overrides), errors)
    swept = [item for item in parsed if item.is_sweep_override()]
    if swept:
        texts = " or ".join(as_typed(*swept[0].input_line.split("=", 1)))
        raise UserError(
            f"{shown(swept[0].input_line)} names several values: one config holds one; a sweep is started with -m"
            + (f"; a text with commas is typed {texts}" if texts else "")
        )
    with hydra_on() as loader:
        cfg = Composer(config_name, start, loader).checked(parsed, errors)
    if errors:
        raise UserError(as_told(errors, parsed))
    return cfg


def as_told(errors: Sequence[str], parsed: Sequence[Override]) -> list[str]:
    """Each error once; where a text was meant that Hydra took for something else, with the line as it must be typed."""
    messages = []
    for message in dict.fromkeys(errors):
        for item in parsed:
            key, _, text = item.input_line.partition("=")
            value = f"{key.rpartition('.')[2].lstrip('+')}={item.value()!r}"
            meant = f"{value} is not valid: Input should be a valid string" in message
            forms = as_typed(key, text)[-1:] if meant and not item.is_sweep_override() else []
            message += f"; as a text, type {forms[0]}" if forms else ""
        messages.append(message)
    return messages


@contextmanager
def hydra_on(folder: Path | None = None, more: str | None = None) -> Iterator[ConfigLoader]:
    """Hydra, initialised on a config folder (ours), and on one more; what was initialised before is put back."""
    with initialize_config_dir(str(folder or CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        if more is not None:  # at the place that Hydra gives it
            anchor = SearchPathQuery(provider="schema")
            loader.config_search_path.prepend("command-line", f"file://{Path(more).absolute()}", anchor)
            loader.repository.initialize_sources(loader.config_search_path)
        yield loader
