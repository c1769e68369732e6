"""The first stage of a build: every shard of a source becomes document shards and drops.

output/kept/SSSSS-PPP.parquet     documents of source shard S, a new part whenever one is full
output/dropped/SSSSS.parquet      what the reader could make no document of
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data.document import Document, Drop, Dropped
from data.engine import Engine
from data.sources.source import Source
from data.stage import Counts, done_counts, mark_done, shard_name
from data.tables import ShardWriter, open_documents, open_dropped, read_documents, write_documents

VERSION = 1
CODE_MODULES = ("data.read",)
STEP = "read"


def read_source(source: Source, output: Path, engine: Engine, *, shard_bytes: int) -> Counts:
    """Read a whole source; the books. Raises ValueError where two documents have the same id."""
    shards = list(enumerate(source.shards()))
    fn = partial(_read_shard, source=source, output=output, shard_bytes=shard_bytes)
    counts = sum(engine.map_shards(fn, shards, label=f"read {source.name}", documents=_documents_read), Counts())
    _check_unique(output, [_ids_path(output, index) for index, _ in shards])
    if not list((output / "kept").glob("*.parquet")):  # what follows needs a shard to look at
        write_documents(output / "kept" / shard_name(0), [])
    return counts


@dataclass(eq=False)
class _Parts:
    """The part of kept/ that is being written; a new one is begun when it is full."""

    folder: Path
    index: int
    shard_bytes: int
    stack: ExitStack = field(default_factory=ExitStack)
    writer: ShardWriter[Document] | None = None
    size: int = 0
    parts: int = 0

    def write(self, document: Document, size: int) -> None:
        if self.writer is not None and self.size + size > self.shard_bytes:
            self.close()
        if self.writer is None:
            path = self.folder / f"{self.index:05d}-{self.parts:03d}.parquet"
            self.writer = self.stack.enter_context(open_documents(path))
            self.parts += 1
            self.size = 0
        self.writer.write(document)
        self.size += size

    def close(self) -> None:
        self.stack.close()
        self.writer = None


def _read_shard(task: tuple[int, Any], *, source: Source, output: Path, shard_bytes: int) -> Counts:
    index, shard = task
    done = done_counts(output, index)
    if done is not None:
        return done
    for name in ("kept", "dropped", "scratch"):
        (output / name).mkdir(parents=True, exist_ok=True)
    ids: list[int] = []
    with open_dropped(output / "dropped" / shard_name(index)) as dropped, ExitStack() as stack:
        parts = _Parts(output / "kept", index, shard_bytes, stack)
        for result in source.documents(shard):
            document = result.document if isinstance(result, Dropped) else result
            _check_identity(document, source)
            if isinstance(result, Dropped):
                dropped.write(result)
                continue
            try:
                size = len(document.text.encode("utf-8"))
            except UnicodeEncodeError as error:
                dropped.write(Dropped(document, STEP, Drop("invalid_unicode", str(error.reason))))
                continue
            ids.append(xxhash.xxh3_64_intdigest(document.id.encode("utf-8", "surrogatepass")))
            parts.write(document, size)
    np.save(_ids_path(output, index), np.array(ids, dtype=np.uint64))
    counts = Counts(read=len(ids) + dropped.count, kept=len(ids), dropped=dropped.count)
    mark_done(output, index, counts)
    return counts


def _check_identity(document: Document, source: Source) -> None:
    if document.source != source.name or not document.id.startswith(f"{source.name}:"):
        raise ValueError(
            f"document {document.id!r} of source {document.source!r}: a document of the source {source.name!r} must "
            f"name it and have an id that begins with '{source.name}:'"
        )


def _ids_path(output: Path, index: int) -> Path:
    return output / "scratch" / f"{index:05d}.ids.npy"


def _check_unique(output: Path, paths: Sequence[Path]) -> None:
    """ValueError when an id occurs twice; takes 8 bytes a document and compares ids only where their hashes meet."""
    if not paths:
        return
    hashes = np.sort(np.concatenate([np.load(path) for path in paths]))
    repeated = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not repeated:
        return
    seen = set()
    for path in sorted((output / "kept").glob("*.parquet")):
        for document in read_documents(path):
            if xxhash.xxh3_64_intdigest(document.id.encode("utf-8")) in repeated:
                if document.id in seen:
                    raise ValueError(f"two documents of the source {document.source!r} have the id {document.id!r}")
                seen.add(document.id)


def _documents_read(counts: Counts) -> int:
    return counts.read
