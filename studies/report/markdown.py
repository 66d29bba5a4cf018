"""Markdown, and the same as one HTML file that needs no other."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 0.875rem; margin: 1rem 0; }
th, td { border: 1px solid #ccc; padding: 0.25rem 0.5rem; text-align: left; vertical-align: top; }
th { background: #f3f3f3; }
pre { background: #f3f3f3; padding: 0.75rem; overflow-x: auto; }
img { max-width: 100%; }
"""


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(str(text).replace("|", "\\|").split())


def code(text: str) -> str:
    """A block of code."""
    return f"```\n{text}\n```"


def literal(text: str) -> str:
    """Text in which nothing is read as Markdown, line breaks as `\\n`, in one line."""
    return re.sub(r"([\\`*<]|(?<!\w)_|_(?!\w))", r"\\\1", text.replace("\n", "\\n"))


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"* {line}" for line in lines)


def figure(title: str, file: Path, folder: Path) -> str:
    """A figure, by its path from the folder of the page."""
    return f"![{title}]({file.relative_to(folder).as_posix()})"


def as_html(markdown: str, title: str, folder: Path) -> str:
    """One HTML file, the figures inside; `folder` is where their paths begin."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    body = re.sub(r'src="([^":]+\.png)"', lambda match: f'src="{_inline(folder / match[1])}"', body)
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}</body></html>\n'


def _inline(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
