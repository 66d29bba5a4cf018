"""The sections of a report, as Markdown. A section that has nothing to say is empty."""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from studies.report.anomalies.fairness import EQUAL
from studies.report.cells import cell, shown_columns
from studies.report.compared_runs import ComparedRuns
from studies.report.comparison_notes import NOUNS, comparison_notes
from studies.report.effects import axis_effects, in_order
from studies.report.markdown import bullets, code, figure, literal, markdown_table
from studies.report.rate_rule import rate_notes
from studies.report.selection import Selection, shown_command
from studies.report.sweep_figures import plot_axis, plot_grid, plot_parallel, plot_pareto, plot_runs
from studies.report.sweep_table import COLUMNS, Setting, flat_config, summary_table, untouched_losses
from studies.run.curves import read_curves
from studies.run.results import DONE

COSTS = {  # title of a column of `summary_table` -> what it is, on the axis of a figure
    "train tokens": "tokens of training",
    "trained": "trained parameters",
    "train s": "seconds of training",
    "eval s": "seconds of evaluation",
    "tokens/s": "tokens of training per second",
    "MB": "peak memory (megabytes)",
}
DRAWN_COSTS = ("trained", "train s", "MB")
QUALITY = {"val/loss": "validation loss (nats per token)", "val/bpb": "bits per byte of the validation text"}
COUNTS = ("blocks", "tokens", "scored", "bytes")
SPLITS = ("train", "validation", "test")
MOST_SAMPLES, MOST_PROMPTS, MOST_PAIRS = 6, 3, 3
SAMPLES = "samples.json"


def asked(selection: Selection) -> str:
    """The command."""
    if selection.command is not None:
        return f"## What was asked\n\n{code(selection.command)}"
    return "## What was asked\n\nThe runs were started by several commands; the last section has them."


def compared(part: ComparedRuns) -> str:
    """Model, data, what is the same in all runs, what varies, machine and versions."""
    by_group = defaultdict(list)
    for key, value in sorted(part.shared.items()):
        group, _, name = key.rpartition(".")
        if key not in part.varied:
            by_group[group].append(f"{name} {_plain(value)}")
    lines = [f"{group or 'run'}: {', '.join(values)}" for group, values in by_group.items() if values != ["name none"]]
    varied = [f"{key}: {', '.join(_values(part, key))}" for key in part.varied]
    results = [result for _, result in part.runs]
    return "\n\n".join(
        [
            f"### On {part.text}",
            "What varies:\n\n" + (bullets(map(literal, varied)) or "Nothing."),
            "What is the same in all runs:\n\n" + bullets(map(literal, lines)),
            _data(results),
            f"Machine: {_recorded(results, 'hardware')}.",
            f"Versions: {_recorded(results, 'versions')}.",
        ]
    )


def _recorded(results: Iterable[Mapping[str, Any]], key: str) -> str:
    """What the results say about their machine or their versions; where they differ, all of it."""
    texts = {", ".join(f"{name} {_plain(value)}" for name, value in result.get(key, {}).items()) for result in results}
    return literal("; ".join(sorted(texts - {""})) or "not recorded")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _values(part: ComparedRuns, key: str) -> list[str]:
    return in_order(str(flat_config(result["config"]).get(key, "-")) for _, result in part.runs)


def _data(results: Iterable[Mapping[str, Any]]) -> str:
    """A line for each split of each text."""
    rows = {}
    for result in results:
        dataset = result.get("dataset", {})
        for split in SPLITS:
            counts = dataset.get(split, {})
            numbers = ["" if counts.get(name) is None else f"{counts[name]:,}" for name in COUNTS]
            rows[dataset.get("sha256", "")[:12], split, *numbers] = None
    header = ["data (sha256)", "split", "blocks", "tokens", "scored tokens", "bytes"]
    return markdown_table(header, rows)


def results(part: ComparedRuns) -> str:
    """The table of the settings with baselines and controls, and what it can tell."""
    lines, untouched = summary_table(part.settings), untouched_losses(part.runs)
    columns = [column for column in shown_columns(lines, 2 if part.metric == "val/bpb" else 1) if column not in COSTS]
    rows = [_reference(columns, f"untouched {label}", {"loss": loss}) for label, loss in untouched.items()]
    rows += [[cell(line, column) for column in columns] for line in lines]
    if _best_is_told_apart(lines):
        place = len(untouched)
        rows[place] = [f"**{text}**" if text else "" for text in rows[place]]
    rows += [_reference(columns, label, {"loss": loss}) for label, loss in _controls(part).items()]
    notes = [*comparison_notes(part.settings), *rate_notes(part.runs)]
    order = f"best first by {NOUNS[part.metric]} (+- 95 % over seeds; bold: told apart from the next)"
    return "\n\n".join(
        filter(None, [f"### On {part.text}, {order}", markdown_table(_heads(columns), rows), bullets(notes)])
    )


def _heads(columns: Sequence[str]) -> list[str]:
    return [column.removesuffix(".name") for column in columns]


def _reference(columns: Sequence[str], label: str, scores: Mapping[str, float]) -> list[str]:
    """The row of a baseline or a control."""
    cells = {column: cell(scores, column) for column in columns}
    if "loss" in scores and "perplexity" in columns and scores["loss"] < 700:
        cells["perplexity"] = cell({"perplexity": math.exp(scores["loss"])}, "perplexity")
    return [label, *list(cells.values())[1:]]


def _best_is_told_apart(lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the first line is better than the second, by the seeds, or without them by the documents."""
    done = [line for line in lines if "loss" in line]
    if len(done) < 2:
        return False
    if "from the best" in done[1]:
        return done[1]["from the best"] == "told apart"
    return done[1].get("over the best, low", 0.0) > 1


def _controls(part: ComparedRuns) -> dict[str, float]:
    """Label -> validation loss of each control; with its setting, where that matters."""
    losses: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for setting in part.measured:
        for _, result in setting.runs:
            for name, value in result["metrics"].items():
                if name.startswith("control/") and name.endswith("/val/loss"):
                    losses[name.split("/")[1]][setting.label()].append(value)
    controls = {}
    for name, by_setting in losses.items():
        alike = defaultdict(list)  # settings share a control that does not depend on what they vary
        for label, values in by_setting.items():
            alike[fmean(values)].append(label)
        for mean, labels in alike.items():
            controls[f"control {name}" + (f" of {'; '.join(labels)}" if len(alike) > 1 else "")] = mean
    return controls


def axes(part: ComparedRuns, folder: Path) -> str:
    """The effects of what was varied, as a table and as figures."""
    effects = axis_effects(part.settings, part.metric)
    if not effects:
        return ""
    rows = []
    for effect in effects:
        if effect.difference is None:
            change = "the others are compared with it" if effect.value == effect.reference else "no pairs"
        elif effect.margin is None:
            change = f"{effect.difference:+.4f} (one pair: no interval)"
        else:
            apart = "told apart" if abs(effect.difference) > effect.margin else "not told apart"
            change = f"{effect.difference:+.4f} +- {effect.margin:.2g} from {effect.reference}, {apart}"
        rows.append([effect.key, effect.value, f"{effect.mean:.4f}", change, str(effect.pairs or "")])
    header = ["key", "value", f"mean {NOUNS[part.metric]}", "difference, 95 %", "pairs"]
    shown = [figure(title, file, folder.parent) for title, file in _axis_figures(part, folder)]
    why = "A pair is two runs that differ in this key alone."
    return "\n\n".join([f"### On {part.text}", why, markdown_table(header, rows), *shown])


def _axis_figures(part: ComparedRuns, folder: Path) -> Iterable[tuple[str, Path]]:
    quality, measured = QUALITY[part.metric], part.measured
    keys = [key for key in measured[0].values if len({setting.values[key] for setting in measured}) > 1]
    for key in keys:
        lines = defaultdict(list)
        for setting in measured:
            others = Setting({name: value for name, value in setting.values.items() if name != key and name in keys})
            point = (setting.values[key], setting.mean(part.metric), setting.margin(part.metric) or 0.0)
            lines[others.label()].append(point)
        plot_axis(lines, key, quality, file := folder / f"{part.text}_by_{key}.png")
        yield f"{quality} by {key}", file
    for x_key, y_key in list(itertools.combinations(keys, 2))[:MOST_PAIRS]:
        cells = defaultdict(list)
        for setting in measured:
            cells[setting.values[x_key], setting.values[y_key]].append(setting.mean(part.metric))
        means = {place: fmean(values) for place, values in cells.items()}
        plot_grid(means, x_key, y_key, quality, file := folder / f"{part.text}_by_{x_key}_and_{y_key}.png")
        yield f"{quality} by {x_key} and {y_key}", file
    if len(keys) > 1:
        values = [{key: setting.values[key] for key in keys} for setting in measured]
        losses = [setting.mean(part.metric) for setting in measured]
        plot_parallel(values, losses, quality, file := folder / f"{part.text}_parallel.png")
        yield f"{quality} of every setting", file


def costs(part: ComparedRuns, folder: Path) -> str:
    """What the settings cost, and the best for each cost."""
    lines = [line for line, setting in zip(summary_table(part.settings), part.settings, strict=True) if setting.runs]
    columns = [*part.settings[0].values, *(title for title in COSTS if any(title in line for line in lines))]
    if not lines:
        return ""
    shown = []
    for title in DRAWN_COSTS:
        points = {
            setting.label(): (cost, setting.mean(part.metric), setting.margin(part.metric) or 0.0)
            for setting in part.measured
            if (cost := setting.mean(COLUMNS[title])) is not None
        }
        all_costs = [cost for cost, *_ in points.values()]
        if max(all_costs, default=0) > min(all_costs, default=0) * (1 + EQUAL):
            file = folder / f"{part.text}_by_{COLUMNS[title].rpartition('/')[2]}.png"
            plot_pareto(points, COSTS[title], file, QUALITY[part.metric])
            shown.append(figure(f"{QUALITY[part.metric]} by {COSTS[title]}", file, folder.parent))
    rows = [[cell(line, column) for column in columns] for line in lines]
    return "\n\n".join([f"### On {part.text}", markdown_table(_heads(columns), rows), *shown])


def curves(part: ComparedRuns, folder: Path) -> str:
    """The training curves of all runs."""
    panels = defaultdict(list)
    for setting in part.measured:
        for path, _ in setting.runs:
            for name, points in read_curves(path).items():
                if name.endswith("/loss") and len(points) > 1:
                    panels[name].append((setting.label(), points))
    if not panels:
        return ""
    plot_runs(panels, file := folder / f"{part.text}_curves.png")
    return f"### On {part.text}\n\n{figure(f'curves of {len(part.finished)} runs', file, folder.parent)}"


def samples(part: ComparedRuns) -> str:
    """What models of the best settings write after the same prompts."""
    by_prompt: dict[str, list[list[str]]] = defaultdict(list)
    for setting in part.measured[:MOST_SAMPLES]:
        for sample in _samples(setting.runs[0][0])[:MOST_PROMPTS]:
            for state, text in sample.items():
                row = [setting.label(), state, literal(text)]
                known = {row[2] for row in by_prompt[sample["prompt"]] if row[1] == state == "before"}
                if state != "prompt" and row[2] not in known:  # the untouched model is the same for all
                    by_prompt[sample["prompt"]].append(row if state != "before" else ["untouched", *row[1:]])
    tables = [
        f"{literal(json.dumps(prompt))} goes on as\n\n{markdown_table(['setting', 'model', 'text'], rows)}"
        for prompt, rows in by_prompt.items()
    ]
    return "\n\n".join([f"### On {part.text}", *tables]) if tables else ""


def _samples(folder: Path) -> list[dict[str, str]]:
    try:
        written = json.loads((folder / SAMPLES).read_text())
    except (OSError, ValueError):
        return []
    return [sample for sample in written if isinstance(sample, dict) and "prompt" in sample]


def failed(selection: Selection) -> str:
    """Jobs that failed, runs that ended early, and runs that are gone."""
    lines = [f"job {job['job']} ({literal(job['overrides'])}): {literal(job['cause'])}" for job in selection.failed]
    for path, result in selection.runs:
        if result["status"] not in DONE:
            error = literal(result.get("error", "no error was recorded"))
            lines.append(f"{path.name}: {result['status']}, {error}")
    lines += [f"{path.name}: its folder is gone" for path in selection.gone]
    return f"## Failures\n\n{bullets(lines)}" if lines else ""


def commands(selection: Selection, parts: Sequence[ComparedRuns]) -> str:
    """A command for each setting, which runs all of its seeds."""
    rows = []
    for setting in (setting for part in parts for setting in part.settings):
        typed = [result.get("overrides", []) for _, result in setting.runs]
        if typed and all(typed):
            seeds = sorted({result["config"]["seed"] for _, result in setting.runs})
            kept = [text for text in typed[0] if not text.startswith("seed=")]
            again = [*kept, f"seed={','.join(map(str, seeds))}"]
            rows.append([setting.label(), f"`{shown_command(['-m', *again] if len(seeds) > 1 else again)}`"])
        elif setting.runs:
            rows.append([setting.label(), f"its config is in {setting.runs[0][0].name}/config.yaml"])
    return "## Commands that repeat each row\n\n" + markdown_table(["setting", "command"], rows) if rows else ""
