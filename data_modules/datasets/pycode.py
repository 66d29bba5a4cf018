"""The code of Python's standard library."""

from __future__ import annotations

from data_modules import DATASETS
from data_modules.documents import Document, by_name
from data_modules.standard_library import modules


@DATASETS.register("pycode")
def pycode() -> dict[str, list[Document]]:
    """Source files of the running Python's standard library, about 10 MB.

    One document per module, in the split that its docstrings have in `pydoc`.
    """
    return by_name(Document(name, code) for name, code in modules().items())
