"""Studies of language models: what they do step by step, their configs, their runs and their reports."""

from pathlib import Path

__path__.append(str(Path(__file__).parent / "tools"))  # `python -m studies.export` is short for `studies.tools.export`
