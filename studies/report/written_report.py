"""Writes a report on finished runs: a Markdown file, the same as one HTML file, and an index of all reports."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from registries.registry import UserError
from studies.report import sections
from studies.report.anomalies import anomalies
from studies.report.compared_runs import ComparedRuns, by_text
from studies.report.markdown import as_html, bullets
from studies.report.selection import Selection
from studies.run.files import make_folder, write_text

REPORTS, INDEX = "reports", "index"
TITLE = "# Report: "


def write_report(selection: Selection, output_dir: Path) -> Path:
    """Write `<output_dir>/reports/<name>.md`, `.html` and the figures in `<name>/`; the same runs give the same bytes.

    Returns:
        The Markdown file.

    Raises:
        UserError: none of the runs can be compared.
    """
    folder = output_dir / REPORTS / selection.name
    readable = [run for run in selection.runs if "config" in run[1] and "dataset" in run[1]]
    if not readable and not selection.failed:
        raise UserError(f"{selection.title}: no run of it came so far as to read its data; there is nothing to report")
    shutil.rmtree(folder, ignore_errors=True)  # figures of an earlier report, with other axes
    make_folder(folder)
    parts = by_text(readable)
    strange = [line for part in parts for line in _named(part, anomalies(part), len(parts))]
    strange += [f"{len(selection.failed)} jobs of the sweep failed (see Failures)"] if selection.failed else []
    strange += [f"{len(selection.gone)} runs are gone"] if selection.gone else []
    text = "\n\n".join(filter(None, [_head(selection, parts, strange), *_body(selection, parts, folder)])) + "\n"
    file = folder.parent / f"{selection.name}.md"
    write_text(file, text)
    write_text(folder.parent / f"{selection.name}.html", as_html(text, selection.title, file.parent))
    if not any(folder.iterdir()):
        folder.rmdir()
    write_index(file.parent)
    return file


def _named(part: ComparedRuns, lines: Sequence[str], parts: int) -> list[str]:
    return [f"on {part.text}: {line}" if parts > 1 else line for line in lines]


def _head(selection: Selection, parts: Sequence[ComparedRuns], strange: Sequence[str]) -> str:
    done = sum(len(part.finished) for part in parts)
    settings = sum(len(part.settings) for part in parts)
    counts = f"Runs that finished: {done} of {len(selection.runs)}; settings: {settings}; warnings: {len(strange)}."
    warnings = bullets(strange) if strange else "Nothing strange was seen in the runs or in their comparison."
    return f"{TITLE}{selection.title}\n\n{counts}\n\n## What to know first\n\n{warnings}"


def _body(selection: Selection, parts: Sequence[ComparedRuns], folder: Path) -> list[str]:
    titled: dict[str, Callable[[ComparedRuns], str]] = {
        "What is compared": sections.compared,
        "Results": sections.results,
        "Effects of what was varied": lambda part: sections.axes(part, folder),
        "Costs": lambda part: sections.costs(part, folder),
        "Training curves": lambda part: sections.curves(part, folder),
        "Samples": sections.samples,
    }
    body = [sections.asked(selection)]
    for title, section in titled.items():
        texts = [section(part) for part in parts if part.measured or title == "What is compared"]
        body += [f"## {title}", *texts] if any(texts) else []
    return [*body, sections.failed(selection), sections.commands(selection, parts)]


def write_index(folder: Path) -> None:
    """The list of all reports of a folder, newest first."""
    lines = []
    for file in sorted(folder.glob("*.md"), reverse=True):
        if file.stem != INDEX:
            title, counts = file.read_text().split("\n\n", 2)[:2]
            title = title.removeprefix(TITLE)
            lines.append(f"[{title}]({file.stem}.html) ([Markdown]({file.name})): {counts}")
    text = f"# Reports\n\n{bullets(lines)}\n"
    write_text(folder / f"{INDEX}.md", text)
    write_text(folder / f"{INDEX}.html", as_html(text, "Reports", folder))
