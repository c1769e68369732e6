"""Jupyter notebooks as text: Markdown cells as they are, code cells fenced, outputs left out.

NotebookFolder(name="courses", paths=("notebooks/",))
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from data.document import Document, Dropped
from data.sources.base import FileSource
from data.sources.jsonl import as_dict, as_list


def notebook_text(data: bytes | str) -> tuple[str, dict[str, Any]]:
    """(text, meta) of a notebook of format 3 or 4. ValueError with one line for what is none."""
    try:
        book = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON: {str(error)[:100]}") from error
    if not isinstance(book, dict):
        raise ValueError("not an object")
    cells = book.get("cells")
    if cells is None:  # format 3 keeps cells in worksheets
        cells = [cell for sheet in as_list(book.get("worksheets")) for cell in as_list(as_dict(sheet).get("cells"))]
    if not isinstance(cells, list):
        raise ValueError("no list of cells")
    language = _language(book.get("metadata"))
    parts = []
    for cell in cells:
        if not isinstance(cell, dict):
            continue
        kind, source = cell.get("cell_type"), cell.get("source", cell.get("input", ""))
        text = "".join(map(str, source)) if isinstance(source, list) else str(source)
        if not text.strip():
            continue
        if kind == "code":
            fence = "````" if "```" in text else "```"
            parts.append(f"{fence}{language}\n{text.strip(chr(10))}\n{fence}")
        elif kind == "heading":
            level = cell.get("level")
            parts.append("#" * (level if isinstance(level, int) and 1 <= level <= 6 else 1) + " " + text.strip())
        else:
            parts.append(text.strip())
    return "\n\n".join(parts), {"num_cells": len(cells), "notebook_language": language}


def _language(metadata: Any) -> str:
    for section, key in (("language_info", "name"), ("kernelspec", "language")):
        name = as_dict(as_dict(metadata).get(section)).get(key)
        if isinstance(name, str) and name.isalnum():
            return name.lower()
    return "python"


@dataclass(frozen=True, kw_only=True)
class NotebookFolder(FileSource):
    """Folders of notebooks."""

    suffixes: ClassVar[tuple[str, ...]] = (".ipynb",)
    files_per_shard: ClassVar[int] = 64
    code_modules: ClassVar[tuple[str, ...]] = (*FileSource.code_modules, "data.sources.notebooks", "data.sources.jsonl")

    def read(self, stream: Any, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """The notebook as one document."""
        data = self.read_file(stream)
        try:
            text, meta = notebook_text(data)
        except ValueError as error:
            yield self.drop(shard, None, "bad_notebook", value=str(error))
            return
        yield self.document(shard, None, text, group=shard["key"], **meta)
