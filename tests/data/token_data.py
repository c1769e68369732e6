"""Small datasets of real text for tests of tokens and loading: the standard library's code and docstrings."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import xxhash

from data.document import Document
from data.engine import LocalPool
from data.tables import write_documents
from data.tokenizer_config import TokenizerConfig
from data.tokenizer_train import train_tokenizer
from data.tokens import tokenize_stage

SMALL = TokenizerConfig(vocab_size=600, sample_bytes=200_000, num_threads=1)


@cache
def stdlib_documents(max_files: int = 60, min_chars: int = 0) -> tuple[Document, ...]:
    """Documents of two sources: "code" (files) and "prose" (docstrings); an eighth is held out."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:max_files]
    documents = []
    for path in files:
        text = path.read_text(encoding="utf-8", errors="replace")
        documents.append(_document(f"code/{path.name}", text, "code"))
        for place, docstring in enumerate(_docstrings(text)):
            if len(docstring) >= min_chars:
                documents.append(_document(f"prose/{path.name}/{place}", docstring, "prose"))
    return tuple(documents)


def _document(document_id: str, text: str, source: str) -> Document:
    split = "heldout" if xxhash.xxh32_intdigest(document_id.encode()) % 8 == 0 else "train"
    return Document(id=document_id, text=text, source=source, meta={"split": split})


def _docstrings(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring


def build(
    folder: Path,
    documents: Sequence[Document],
    *,
    config: TokenizerConfig = SMALL,
    shards: int = 2,
    workers: int = 1,
    seed: int = 0,
) -> Path:
    """A dataset folder with tokenizer/ and tokens/ made of `documents`, dealt out to document shards."""
    paths = []
    for number in range(shards):
        paths.append(folder / "documents" / f"{number:05d}.parquet")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        write_documents(paths[-1], documents[number::shards])
    if not (folder / "tokenizer").is_dir():
        train_tokenizer(config, paths, folder / "tokenizer")
    tokenize_stage(paths, folder / "tokenizer", folder / "tokens", LocalPool(workers=workers), seed=seed)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """The bytes of every file under a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
