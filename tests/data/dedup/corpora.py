"""Corpora for the dedup tests: real prose of installed packages, and near-duplicates at a known similarity."""

from __future__ import annotations

import ast
import importlib.util
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from data.document import Document

# numpy and jax.numpy document the same functions; transformers' modeling files were copied from each other
PACKAGES = ("numpy", "jax", "transformers")
MIN_CHARS = 200


def python_files(package: str) -> list[Path]:
    """The source files of an installed package, in a stable order; nothing is imported."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0])
    return sorted(path for path in root.rglob("*.py") if "tests" not in path.parts)


def docstrings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(name, docstring) of a module, its classes and functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield f"{getattr(node, 'name', '')}:{getattr(node, 'lineno', 0)}", text


@cache
def _python_documents(modeling_files: int) -> tuple[Document, ...]:
    """Docstrings of numpy, jax.numpy and some modeling files, and the class sources of the latter."""
    found: list[Document] = []
    for package in PACKAGES:
        modeling = 0
        for path in python_files(package):
            name = "/".join(path.parts[path.parts.index("site-packages") + 1 :])
            modeling += path.name.startswith("modeling_")
            if package == "transformers" and not (path.name.startswith("modeling_") and modeling <= modeling_files):
                continue
            if package == "jax" and "numpy" not in name:
                continue
            source = path.read_text(encoding="utf-8", errors="replace")
            try:
                tree = ast.parse(source)
            except SyntaxError:
                continue
            found += [Document(id=f"{name}:{place}", text=text, source=package) for place, text in docstrings(tree)]
            if package == "transformers":
                lines = source.splitlines(keepends=True)
                for node in tree.body:
                    if isinstance(node, ast.ClassDef | ast.FunctionDef):
                        text = "".join(lines[node.lineno - 1 : node.end_lineno])
                        found.append(Document(id=f"{name}:{node.name}:code", text=text, source=f"{package}-code"))
    return tuple(document for document in found if len(document.text) >= MIN_CHARS)


def python_corpus(count: int, seed: int, modeling_files: int) -> list[Document]:
    """A sample of real documents full of natural near-duplicates."""
    found = _python_documents(modeling_files)
    return random.Random(seed).sample(found, min(count, len(found)))


def planted_copy(words: list[str], similarity: float, draw: random.Random, size: int = 5) -> list[str]:
    """A copy of a text whose set of `size`-word shingles has about this Jaccard similarity: a run of its words is new.

    A run of r new words in the middle replaces r + size - 1 of n shingles by as many others: J = (n - k) / (n + k).
    """
    shingles = len(words) - size + 1
    changed = round(shingles * (1 - similarity) / (1 + similarity))
    run = max(changed - size + 1, 0)
    start = draw.randrange(size, len(words) - run - size)
    return [*words[:start], *(f"new{draw.randrange(10**9)}" for _ in range(run)), *words[start + run :]]
