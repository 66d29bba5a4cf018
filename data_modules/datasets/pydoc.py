"""The documentation that ships with Python: real English on every machine, without a download."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from functools import cache

from data_modules import DATASETS
from data_modules.documents import Document, by_name
from data_modules.standard_library import modules


@DATASETS.register("pydoc")
def pydoc() -> dict[str, list[Document]]:
    """Help topics and docstrings of the running Python's standard library, about 2 MB.

    One document per module and one per topic. The name alone decides the split of a document, so that it is the same
    in every version of Python.
    """
    return by_name(_documents())


@cache  # parsing the library takes 2.5 s, and the jobs of a sweep share a process
def _documents() -> tuple[Document, ...]:
    from pydoc_data.topics import topics

    from_modules = [(name, "".join(_docstrings(name, code))) for name, code in modules().items()]
    from_topics = [(f"topic {name}", text) for name, text in sorted(topics.items())]
    return tuple(Document(name, text) for name, text in from_modules + from_topics if text)


def _docstrings(name: str, code: str) -> Iterator[str]:
    """The docstrings of a module and all its definitions, each under the qualified name; nothing is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in the library's own strings
        tree = ast.parse(code)
    yield from _visit(tree, name)


def _visit(node: ast.AST, name: str) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring:
            yield f"{name}\n\n{docstring}\n\n"
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _visit(child, f"{name}.{child.name}")
        elif isinstance(child, ast.stmt | ast.ExceptHandler):  # definitions under if, try, with
            yield from _visit(child, name)
