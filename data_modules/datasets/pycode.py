"""The source code of Python's standard library."""

from __future__ import annotations

from data_modules import DATASETS
from data_modules.documents import SPLITS, Document, split_of
from data_modules.standard_library import modules


@DATASETS.register("pycode")
def pycode() -> dict[str, list[Document]]:
    """Source files of the running Python's standard library, about 10 MB.

    One document per module, in the split that its docstrings have in `pydoc`.
    """
    documents = [Document(name, source) for name, source in modules().items()]
    by_split = {split: [document for document in documents if split_of(document.name) == split] for split in SPLITS}
    return {"all": documents} | by_split
