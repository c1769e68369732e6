"""Document shards on disk: Parquet (zstd) tables that are read and written as streams.

    documents   id, text, source, meta, scores                                      meta and scores as JSON objects
    dropped     the same + step, reason, value, threshold, partner                  value and threshold as JSON values

A file is written under a temporary name and renamed when whole, so a file with its final name is always complete.
The writer's settings are fixed and nothing that depends on time or place is stored: equal rows give equal bytes with
the same pyarrow version (which is therefore part of every stage key, see `LIBRARIES`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar
from uuid import getnode

import pyarrow as pa
import pyarrow.parquet as pq

from data.document import Document, Drop, Dropped

VERSION = 1
LIBRARIES = ("pyarrow",)  # distributions whose version shapes the bytes of every shard

TEMPORARY_SUFFIX = ".tmp"
ROW_GROUP_CHARS = 4 << 20  # characters of text: what a reader or writer holds in memory at once
ROW_GROUP_ROWS = 8192  # rows: the same bound for many small documents
READ_ROWS = 512  # rows turned into Python objects at once

DOCUMENT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.large_string()),  # 64-bit offsets: one row group may pass 2 GiB when one document is huge
        ("source", pa.string()),
        ("meta", pa.large_string()),
        ("scores", pa.large_string()),
    ]
)
DROPPED_SCHEMA = pa.schema(
    [
        *DOCUMENT_SCHEMA,
        ("step", pa.string()),
        ("reason", pa.string()),
        ("value", pa.string()),
        ("threshold", pa.string()),
        ("partner", pa.string()),
    ]
)
_REPEATING_COLUMNS = ["source", "step", "reason", "threshold"]  # few distinct values: dictionary-encoded

MACHINE = f"{getnode():x}"  # hardware address: process ids repeat from one machine to the next

T = TypeVar("T")
Row = tuple[str | None, ...]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it becomes `path` when the block ends well, and is gone otherwise.

    The name holds machine and process, so a process that outlives its killed parent never writes into another's file.
    """
    temporary = path.with_name(f"{path.name}.{MACHINE}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically: sorted keys, two spaces, one newline at the end."""
    with atomic_path(path) as temporary:
        text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False, default=_plain)
        temporary.write_text(text + "\n", encoding="utf-8")


class ShardWriter(Generic[T]):
    """Rows on their way into one shard, a row group at a time; made by `open_documents` and `open_dropped`.

    count: rows written so far; chars: characters of text in them.
    """

    def __init__(self, writer: pq.ParquetWriter, to_row: Callable[[T], Row]):
        self.count = 0
        self.chars = 0
        self._writer = writer
        self._to_row = to_row
        self._rows: list[Row] = []
        self._flushed_chars = 0

    def write(self, item: T) -> None:
        """Add one row."""
        row = self._to_row(item)
        self._rows.append(row)
        self.count += 1
        self.chars += len(row[1] or "")
        if self.chars - self._flushed_chars >= ROW_GROUP_CHARS or len(self._rows) >= ROW_GROUP_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait as one row group."""
        if not self._rows:
            return
        schema = self._writer.schema
        try:
            arrays = [pa.array(column, type=field.type) for column, field in zip(zip(*self._rows), schema)]
        except (UnicodeEncodeError, pa.ArrowInvalid, pa.ArrowTypeError):
            for row in self._rows:
                _check_row(row)
            raise
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        self._rows, self._flushed_chars = [], self.chars


@contextmanager
def open_documents(path: Path) -> Iterator[ShardWriter[Document]]:
    """A shard of documents to write to; it exists under its name only when the block ended well."""
    with _open_writer(path, DOCUMENT_SCHEMA, _document_row) as writer:
        yield writer


@contextmanager
def open_dropped(path: Path) -> Iterator[ShardWriter[Dropped]]:
    """A shard of dropped documents to write to; it exists under its name only when the block ended well."""
    with _open_writer(path, DROPPED_SCHEMA, _dropped_row) as writer:
        yield writer


def write_documents(path: Path, documents: Iterable[Document]) -> int:
    """Write documents to one shard, streaming and atomically; the number written.

    Raises ValueError, naming the document, for text that is not valid Unicode or meta that is not JSON.
    """
    with open_documents(path) as writer:
        for document in documents:
            writer.write(document)
    return writer.count


def read_documents(path: Path) -> Iterator[Document]:
    """The documents of one shard in order, streaming: memory is bounded by one row group.

    Raises ValueError in one line for a missing, truncated or foreign file.
    """
    for row in _read(path, DOCUMENT_SCHEMA):
        yield _document(*row)


def write_dropped(path: Path, dropped: Iterable[Dropped]) -> int:
    """Write dropped documents with their reasons to one shard, streaming and atomically; the number written."""
    with open_dropped(path) as writer:
        for row in dropped:
            writer.write(row)
    return writer.count


def read_dropped(path: Path) -> Iterator[Dropped]:
    """The dropped documents of one shard in order, streaming. Raises ValueError as `read_documents` does."""
    for *document, step, reason, value, threshold, partner in _read(path, DROPPED_SCHEMA):
        yield Dropped(_document(*document), step, Drop(reason, _value(value), _value(threshold), partner))


def count_rows(path: Path) -> int:
    """The number of rows of one shard, read from its footer only."""
    with _opened(path) as file:
        return file.metadata.num_rows


@contextmanager
def _open_writer(path: Path, schema: pa.Schema, to_row: Callable[[T], Row]) -> Iterator[ShardWriter[T]]:
    with atomic_path(path) as temporary, _columns_writer(temporary, schema) as columns:
        writer = ShardWriter(columns, to_row)
        yield writer
        writer.flush()


def _document_row(document: Document) -> Row:
    try:
        meta, scores = _json(document.meta), _json(document.scores)
    except (TypeError, ValueError) as error:
        raise ValueError(f"document {document.id}: meta and scores must be JSON values: {error}") from error
    return document.id, document.text, document.source, meta, scores


def _dropped_row(row: Dropped) -> Row:
    drop, document = row.drop, row.document
    if not document.text.isascii():  # an unreadable text is a reason to be here: keep what can be kept of it
        document = document.with_text(document.text.encode("utf-8", "replace").decode("utf-8"))
    return (
        *_document_row(document),
        row.step,
        drop.reason,
        None if drop.value is None else _json(drop.value),
        None if drop.threshold is None else _json(drop.threshold),
        drop.partner,
    )


def _document(name: str, text: str, source: str, meta: str, scores: str) -> Document:
    return Document(
        id=name,
        text=text,
        source=source,
        meta=json.loads(meta) if meta != "{}" else {},
        scores=json.loads(scores) if scores != "{}" else {},
    )


def _columns_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        path,
        schema,
        version="2.6",
        compression="zstd",
        compression_level=3,
        use_dictionary=[name for name in _REPEATING_COLUMNS if name in schema.names],
        write_statistics=["id", "source"],
        write_page_checksum=True,
    )


def _check_row(row: Row) -> None:
    for value in row:
        if value is not None and not isinstance(value, str):
            raise ValueError(f"document {row[0]!r}: expected text, got {type(value).__name__}")
        try:
            (value or "").encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"document {row[0]!r}: text with a lone surrogate cannot be stored: {error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        file = pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such shard") from error
    except (pa.ArrowException, OSError) as error:
        raise ValueError(_unreadable(path, error)) from error
    with file:
        yield file


def _read(path: Path, schema: pa.Schema) -> Iterator[tuple[Any, ...]]:
    """Rows as tuples in the order of the schema."""
    with _opened(path) as file:
        missing = [name for name in schema.names if name not in file.schema_arrow.names]
        if missing:
            found = ", ".join(file.schema_arrow.names)
            raise ValueError(f"{path}: not a document shard: columns {', '.join(missing)} missing, found {found}")
        for group in range(file.num_row_groups):
            try:
                table = file.read_row_group(group, columns=schema.names, use_threads=False).select(schema.names)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(_unreadable(path, error)) from error
            for start in range(0, table.num_rows, READ_ROWS):
                yield from zip(*(column.to_pylist() for column in table.slice(start, READ_ROWS).columns))


def _unreadable(path: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    return f"{path}: unreadable or truncated Parquet shard: {reason}; remove it and build again"


def _json(value: Any) -> str:
    return _ENCODER.encode(value)


def _value(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _plain(value: Any) -> Any:
    """JSON form of what is not JSON by itself: numpy scalars and mappings."""
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return value.item()
    raise TypeError(f"{type(value).__name__} is not a JSON value")


# One encoder for all rows: json.dumps would make one a call.
_ENCODER = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, allow_nan=False, default=_plain, separators=(",", ":"), check_circular=False
)
