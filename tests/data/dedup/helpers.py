"""Shards on disk for the dedup tests, and plain-Python versions of what the library does on arrays."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import regex

from data.document import Document, Dropped
from data.tables import read_documents, read_dropped, write_documents


def write_shards(folder: Path, documents: Sequence[Document], shards: int = 2) -> list[Path]:
    """Documents in `shards` files of neighbours."""
    folder.mkdir(parents=True, exist_ok=True)
    cuts = [len(documents) * number // shards for number in range(shards + 1)]
    paths = []
    for number in range(shards):
        paths.append(folder / f"{number:05d}.parquet")
        write_documents(paths[-1], documents[cuts[number] : cuts[number + 1]])
    return paths


def kept(output: Path) -> list[Document]:
    """All kept documents of a stage, in order."""
    return [document for path in sorted((output / "kept").glob("*.parquet")) for document in read_documents(path)]


def dropped(output: Path) -> list[Dropped]:
    """All dropped documents of a stage, in order."""
    return [row for path in sorted((output / "dropped").glob("*.parquet")) for row in read_dropped(path)]


def tree_bytes(output: Path) -> dict[str, bytes]:
    """Every file below a folder with its content, `done` marks left out."""
    files = (path for path in sorted(output.rglob("*")) if path.is_file() and "done" not in path.parts)
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


_UNSPACED = r"\u0E00-\u0FFF\u1000-\u109F\u1780-\u17FF\u3040-\u30FF\u31F0-\u31FF\u3400-\u4DBF\u4E00-\u9FFF\uF900-\uFAFF"
_WORD = regex.compile(
    rf"(?=[{_UNSPACED}\U00020000-\U0003FFFF])[\p{{L}}\p{{N}}\p{{M}}]"
    rf"|(?:(?![{_UNSPACED}\U00020000-\U0003FFFF])[\p{{L}}\p{{N}}\p{{M}}_])+"
)


def words(text: str) -> list[str]:
    """The words of a text by a regular expression; characters of scripts without spaces are words."""
    return _WORD.findall(unicodedata.normalize("NFC", text).lower())


def shingle_set(text: str, size: int = 5) -> set[tuple[str, ...]]:
    """The word shingles of a text, as tuples."""
    found = words(text)
    if len(found) < size:
        return {tuple(found)} if found else set()
    return {tuple(found[start : start + size]) for start in range(len(found) - size + 1)}


def jaccard(one: set, other: set) -> float:
    """|one & other| / |one | other|."""
    return len(one & other) / len(one | other)
