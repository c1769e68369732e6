"""Parquet files: one shard a run of row groups, columns read as streams.

ParquetSource(name="code", paths=("gs://bucket/stack/*.parquet",), text_field="content", meta_fields=("lang",))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from data.document import Document, Dropped
from data.sources import files
from data.sources.base import FileSource
from data.sources.jsonl import lookup
from data.sources.limits import BombError, CorruptError
from data.sources.parquet_pages import largest_page
from data.sources.remote import is_remote

PAGE_RECORDS = 16  # a page may be as large as this many of the largest records: Arrow puts 1,024 values into one


@dataclass(frozen=True, kw_only=True)
class ParquetSource(FileSource):
    """Rows of Parquet files.

    text_field, id_field, meta_fields: column names, with dots reaching into structs; the id stands before the row
        number in ours.
    row_groups_per_shard: row groups that one worker reads.
    batch_rows: rows turned into Python objects at once.
    """

    text_field: str = "text"
    id_field: str | None = None
    meta_fields: tuple[str, ...] = ()
    row_groups_per_shard: int = 64
    batch_rows: int = 256

    suffixes: ClassVar[tuple[str, ...]] = (".parquet",)
    version: ClassVar[int] = 3
    code_modules: ClassVar[tuple[str, ...]] = (
        *FileSource.code_modules,
        "data.sources.parquet",
        "data.sources.jsonl",
        "data.sources.parquet_pages",
    )
    libraries: ClassVar[tuple[str, ...]] = ("pyarrow",)

    def shards(self) -> Sequence[dict[str, Any]]:
        """Runs of row groups: {"url", "key", "first", "groups", "row"}; remote files are one shard."""
        shards: list[dict[str, Any]] = []
        for entry in self.entries():
            whole = {"url": entry.url, "key": entry.key}
            if is_remote(entry.url):
                shards.append(whole)
                continue
            try:
                with files.open_bytes(entry.url) as stream:
                    metadata = _open(stream).metadata
                    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            except CorruptError:
                shards.append(whole)  # reading it gives the counted drop
                continue
            for first in range(0, max(len(sizes), 1), self.row_groups_per_shard):
                groups = len(sizes[first : first + self.row_groups_per_shard])
                shards.append({**whole, "first": first, "groups": groups, "row": sum(sizes[:first])})
        return shards

    def file_documents(self, file: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """One document a row."""
        with files.open_bytes(file["url"]) as stream:
            yield from self._rows(_open(stream), stream, file)

    def _rows(self, table: Any, stream: Any, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        columns = [self.text_field, *([self.id_field] if self.id_field else []), *self.meta_fields]
        names = table.schema_arrow.names
        missing = [name for name in columns if name not in names and name.split(".")[0] not in names]
        if missing:
            raise CorruptError(f"no column {missing[0]!r}; the file has {', '.join(names)}")
        first, row = shard.get("first", 0), shard.get("row", 0)
        for group in range(first, first + shard.get("groups", table.metadata.num_row_groups)):
            end = row + table.metadata.row_group(group).num_rows
            reason, value = "corrupt_rows", "fewer rows than the footer says"
            try:
                self._check_cost(table.metadata.row_group(group), stream, columns)
                for batch in table.iter_batches(self.batch_rows, row_groups=[group], columns=columns):
                    for values in batch.to_pylist()[: end - row]:
                        yield self._document(shard, row, values)
                        row += 1
            except (OSError, UnicodeDecodeError, ValueError) as error:
                if getattr(error, "errno", None) is not None:
                    raise
                reason = "expands_too_far" if isinstance(error, BombError) else reason
                value = str(error).split("\n")[0]
            while row < end:  # what cannot be read of a row group is every row behind the fault
                yield self.drop(shard, row, reason, value=value)
                row += 1

    def _check_cost(self, group: Any, stream: Any, columns: Sequence[str]) -> None:
        """BombError where a column of this row group would take the memory: pages are decompressed whole."""
        names = {name.split(".")[0] for name in columns}
        for index in range(group.num_columns):
            column = group.column(index)
            if column.path_in_schema.split(".")[0] not in names:
                continue
            size, packed = column.total_uncompressed_size, max(column.total_compressed_size, 1)
            if size < self.limits.expansion_grace:
                continue
            if size / packed > self.limits.max_expansion:
                raise BombError(f"expands {size / packed:.0f}-fold, limit {self.limits.max_expansion:.0f}")
            page, limit = largest_page(stream, column), PAGE_RECORDS * self.limits.max_record_bytes
            if page > limit:
                raise BombError(f"a page of {page} bytes, limit {limit} ({PAGE_RECORDS} times max_record_bytes)")

    def _document(self, shard: Mapping[str, Any], row: int, values: Mapping[str, Any]) -> Document | Dropped:
        own = _value(values, self.id_field) if self.id_field else None
        name = row if own is None else f"{own}@{row}"
        text = _value(values, self.text_field)
        if isinstance(text, bytes):
            try:
                text = text.decode()
            except UnicodeDecodeError:
                return self.drop(shard, name, "bad_encoding")
        if not isinstance(text, str):
            return self.drop(shard, name, "text_is_not_a_string", value=type(text).__name__)
        if len(text) > self.limits.max_record_bytes:
            return self.too_large(shard, name, len(text))
        return self.document(shard, name, text, row=row, **{field: _value(values, field) for field in self.meta_fields})


def _value(values: Mapping[str, Any], name: str) -> Any:
    return values[name] if name in values else lookup(values, name)


def _open(stream: Any) -> Any:
    """The file's footer and readers. CorruptError with one line where it is no Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(stream, memory_map=False, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise CorruptError(str(error).split("\n")[0]) from error
