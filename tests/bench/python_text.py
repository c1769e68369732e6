"""Real text that every machine has, for benches: the files and docstrings of Python's standard library."""

from __future__ import annotations

import ast
import sysconfig
from pathlib import Path

from data.document import Document


def stdlib_text(max_bytes: int) -> list[Document]:
    """Documents of sources "code" (one a file) and "prose" (one a docstring), about `max_bytes` characters in all."""
    documents: list[Document] = []
    size = 0
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        name = str(path.relative_to(root))
        documents.append(Document(id=f"code/{name}", text=text, source="code"))
        for place, docstring in enumerate(_docstrings(text)):
            documents.append(Document(id=f"prose/{name}/{place}", text=docstring, source="prose"))
            size += len(docstring)
        size += len(text)
        if size >= max_bytes:
            break
    return documents


def _docstrings(text: str) -> list[str]:
    try:
        tree = ast.parse(text)
    except SyntaxError:  # lib2to3 keeps files of Python 2
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return [docstring for docstring in found if docstring]
