from pathlib import Path

import pytest

from registries.option import CONF
from studies.config.groups import GROUPS
from studies.tools import configuration

PAGE = Path(__file__).resolve().parents[3] / "docs" / "configuration.md"


def test_the_page_in_the_repository_is_what_the_command_writes(tmp_path):
    configuration.main(str(tmp_path / "page.md"))
    assert PAGE.read_text() == (tmp_path / "page.md").read_text()


@pytest.mark.parametrize("group", [group for group in GROUPS if group != "source"])
def test_every_key_of_every_option_has_a_row(group):
    """With what it may be, and a meaning."""
    page = configuration.reference()
    section = page.split(f"\n## `{group}`\n")[1].split("\n## ")[0]
    shared, *texts = section.split("\n### ")
    for text in texts:
        name = text.split("`")[1].partition("=")[2]
        for key in configuration.option_keys(CONF / group / f"{name}.yaml"):
            (row,) = [line for line in (shared + text).splitlines() if line.startswith(f"| `{key}` |")][-1:]
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            assert len(cells) == 4 and all((cells[0], cells[3])) and (cells[2] or key == "early_stopping"), row


def test_ranges_are_told_in_words():
    page = configuration.reference()
    assert "| `period` | `2048` | integer ≥ 2 |" in page
    assert "| `dropout` | `0.0` | number ≥ 0, < 1 |" in page
    assert "| `init` | `copy` | copy, random |" in page
    assert "| `fusion_rank` | `null` | integer ≥ 1 or null |" in page
