"""What the table of a sweep can tell, in words."""

from __future__ import annotations

from collections.abc import Sequence

from studies.report.sweep_table import Setting, compared_by, spread_of

NOUNS = {"val/loss": "loss", "val/bpb": "bits per byte"}


def comparison_notes(settings: Sequence[Setting]) -> list[str]:
    """Which differences are told apart, and whether the settings were trained on equally many tokens."""
    finished = [setting for setting in settings if setting.runs]
    if len(finished) < 2:
        return []
    return [_seeds_note(finished), *_tokens_notes(finished)]


def _seeds_note(settings: Sequence[Setting]) -> str:
    metric = compared_by([run for setting in settings for run in setting.runs])
    spread = spread_of(settings, metric)
    if spread is None:
        return (
            "one seed for each setting: how much seeds differ is not known, and no order is claimed (seed=0,1,2 tells)"
        )
    seeds = min(len(setting.runs) for setting in settings)
    return (
        f"seeds differ by a standard deviation of {spread.sigma:.2g} in {NOUNS[metric]} ({spread.degrees} degrees of "
        f"freedom): {seeds} seeds against {seeds} are told apart, with 95 % confidence, by a difference of "
        f"{spread.least_difference(seeds, seeds):.2g} or more"
    )


def _tokens_notes(settings: Sequence[Setting]) -> list[str]:
    tokens = [tokens for setting in settings if (tokens := setting.mean("train/tokens"))]
    if len(set(tokens)) < 2:
        return []
    return [f"the settings were not trained on equally many tokens: {min(tokens):,.0f} to {max(tokens):,.0f}"]
