"""The datasets `pydoc` and `pycode`."""

import pytest

from data_modules import DATASETS
from data_modules.datasets.pydoc import _docstrings
from data_modules.documents import SPLITS, split_of


@pytest.mark.parametrize(("name", "low", "high"), [("pydoc", 1.5e6, 4e6), ("pycode", 6e6, 20e6)])
def test_documents(name, low, high):
    documents = DATASETS.build(name)
    assert low < sum(len(document.text) for document in documents["all"]) < high
    assert sorted(document.name for split in SPLITS for document in documents[split]) == sorted(
        document.name for document in documents["all"]
    )
    for split in SPLITS:
        assert documents[split]
        assert {split_of(document.name) for document in documents[split]} == {split}
    modules = [document.name.split(".") for document in documents["all"]]
    assert not [parts for parts in modules if {"test", "tests", "idlelib", "lib2to3", "pydoc_data"} & set(parts)]


def test_docstrings_come_under_qualified_names():
    source = '''"""Module."""
try:
    class Outer:
        """Class."""
        def method(self):
            """Method."""
        async def bare(self): ...
except ImportError:
    def fallback():
        """Fallback."""
'''
    assert "".join(_docstrings("m", source)) == (
        "m\n\nModule.\n\nm.Outer\n\nClass.\n\nm.Outer.method\n\nMethod.\n\nm.fallback\n\nFallback.\n\n"
    )
