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
from typing import Any, TypeVar

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

T = TypeVar("T")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it becomes `path` when the block ends well, and is gone otherwise.

    The name holds the process id, so a process that outlives its killed parent never writes into another's file.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
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


def write_documents(path: Path, documents: Iterable[Document]) -> int:
    """Write documents to one shard, streaming and atomically; the number written.

    Raises ValueError, naming the document, for text that is not valid Unicode or meta that is not JSON.
    """
    return _write(path, documents, DOCUMENT_SCHEMA, _document_row, lambda document: len(document.text))


def read_documents(path: Path) -> Iterator[Document]:
    """The documents of one shard in order, streaming: memory is bounded by one row group.

    Raises ValueError in one line for a missing, truncated or foreign file.
    """
    for row in _read(path, DOCUMENT_SCHEMA):
        yield _document(row)


def write_dropped(path: Path, dropped: Iterable[Dropped]) -> int:
    """Write dropped documents with their reasons to one shard, streaming and atomically; the number written."""
    return _write(path, dropped, DROPPED_SCHEMA, _dropped_row, lambda row: len(row.document.text))


def read_dropped(path: Path) -> Iterator[Dropped]:
    """The dropped documents of one shard in order, streaming. Raises ValueError as `read_documents` does."""
    for row in _read(path, DROPPED_SCHEMA):
        drop = Drop(row["reason"], _value(row["value"]), _value(row["threshold"]), row["partner"])
        yield Dropped(_document(row), row["step"], drop)


def count_rows(path: Path) -> int:
    """The number of rows of one shard, read from its footer only."""
    with _opened(path) as file:
        return file.metadata.num_rows


def _document_row(document: Document) -> tuple[str | None, ...]:
    try:
        meta, scores = _json(document.meta), _json(document.scores)
    except (TypeError, ValueError) as error:
        raise ValueError(f"document {document.id}: meta and scores must be JSON values: {error}") from error
    return document.id, document.text, document.source, meta, scores


def _dropped_row(row: Dropped) -> tuple[str | None, ...]:
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


def _document(row: Mapping[str, Any]) -> Document:
    return Document(
        id=row["id"],
        text=row["text"],
        source=row["source"],
        meta=json.loads(row["meta"]),
        scores=json.loads(row["scores"]),
    )


def _write(
    path: Path,
    items: Iterable[T],
    schema: pa.Schema,
    to_row: Callable[[T], tuple[str | None, ...]],
    chars: Callable[[T], int],
) -> int:
    count = 0
    with atomic_path(path) as temporary, _writer(temporary, schema) as writer:
        rows: list[tuple[str | None, ...]] = []
        size = 0
        for item in items:
            rows.append(to_row(item))
            size += chars(item)
            if size >= ROW_GROUP_CHARS or len(rows) >= ROW_GROUP_ROWS:
                _write_group(writer, schema, rows)
                count, rows, size = count + len(rows), [], 0
        if rows:
            _write_group(writer, schema, rows)
    return count + len(rows)


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
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


def _write_group(writer: pq.ParquetWriter, schema: pa.Schema, rows: list[tuple[str | None, ...]]) -> None:
    columns = list(zip(*rows))
    try:
        arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema)]
    except (UnicodeEncodeError, pa.ArrowInvalid, pa.ArrowTypeError):
        for row in rows:
            _check_row(row)
        raise
    writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _check_row(row: tuple[str | None, ...]) -> None:
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


def _read(path: Path, schema: pa.Schema) -> Iterator[dict[str, Any]]:
    with _opened(path) as file:
        missing = [name for name in schema.names if name not in file.schema_arrow.names]
        if missing:
            found = ", ".join(file.schema_arrow.names)
            raise ValueError(f"{path}: not a document shard: columns {', '.join(missing)} missing, found {found}")
        for group in range(file.num_row_groups):
            try:
                table = file.read_row_group(group, columns=schema.names, use_threads=False)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(_unreadable(path, error)) from error
            for start in range(0, table.num_rows, READ_ROWS):
                columns = [column.to_pylist() for column in table.slice(start, READ_ROWS).columns]
                for row in zip(*columns):
                    yield dict(zip(schema.names, row))


def _unreadable(path: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    return f"{path}: unreadable or truncated Parquet shard: {reason}; remove it and build again"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False, default=_plain, separators=(",", ":"))


def _value(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _plain(value: Any) -> Any:
    """JSON form of what is not JSON by itself: numpy scalars and mappings."""
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return value.item()
    raise TypeError(f"{type(value).__name__} is not a JSON value")
