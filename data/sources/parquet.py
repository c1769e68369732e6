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


@dataclass(frozen=True, kw_only=True)
class ParquetSource(FileSource):
    """Rows of Parquet files.

    text_field, id_field, meta_fields: column names; the id must be unique in its file, the row number is used without.
    row_groups_per_shard: row groups that one worker reads.
    batch_rows: rows turned into Python objects at once.
    """

    text_field: str = "text"
    id_field: str | None = None
    meta_fields: tuple[str, ...] = ()
    row_groups_per_shard: int = 64
    batch_rows: int = 256

    suffixes: ClassVar[tuple[str, ...]] = (".parquet",)
    code_modules: ClassVar[tuple[str, ...]] = (*FileSource.code_modules, "data.sources.parquet")
    libraries: ClassVar[tuple[str, ...]] = ("pyarrow",)

    def shards(self) -> Sequence[dict[str, Any]]:
        """Runs of row groups: {"url", "key", "first", "groups", "row"}; a file without a footer is one shard."""
        shards: list[dict[str, Any]] = []
        for entry in self.entries():
            whole = {"url": entry.url, "key": entry.key}
            try:
                with files.open_bytes(entry.url) as stream:
                    metadata = _open(stream).metadata
                    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            except ValueError:
                shards.append(whole)  # reading it gives the counted drop
                continue
            for first in range(0, max(len(sizes), 1), self.row_groups_per_shard):
                groups = len(sizes[first : first + self.row_groups_per_shard])
                shards.append({**whole, "first": first, "groups": groups, "row": sum(sizes[:first])})
        return shards

    def documents(self, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """One document a row."""
        with files.open_bytes(shard["url"]) as stream:
            try:
                yield from self._rows(_open(stream), shard)
            except ValueError as error:
                yield self.drop(shard, "end", "corrupt_file", value=str(error))

    def _rows(self, table: Any, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        columns = [self.text_field, *([self.id_field] if self.id_field else []), *self.meta_fields]
        missing = [name for name in columns if name.split(".")[0] not in table.schema_arrow.names]
        if missing:
            raise ValueError(f"no column {missing[0]!r}; the file has {', '.join(table.schema_arrow.names)}")
        first = shard.get("first", 0)
        groups = range(first, first + shard.get("groups", table.metadata.num_row_groups))
        row = shard.get("row", 0)
        for group in groups:
            try:
                for batch in table.iter_batches(self.batch_rows, row_groups=[group], columns=columns):
                    for values in batch.to_pylist():
                        yield self._document(shard, row, values)
                        row += 1
            except (OSError, UnicodeDecodeError, ValueError) as error:
                if getattr(error, "errno", None) is not None:
                    raise
                end = shard.get("row", 0) + sum(table.metadata.row_group(g).num_rows for g in groups if g <= group)
                yield self.drop(
                    shard, f"{row}-{end}", "corrupt_rows", value=str(error).split("\n")[0], threshold=end - row
                )
                row = end

    def _document(self, shard: Mapping[str, Any], row: int, values: Mapping[str, Any]) -> Document | Dropped:
        name = values[self.id_field] if self.id_field and values[self.id_field] is not None else row
        text = values[self.text_field]
        if isinstance(text, bytes):
            try:
                text = text.decode()
            except UnicodeDecodeError:
                return self.drop(shard, name, "bad_encoding")
        if not isinstance(text, str):
            return self.drop(shard, name, "text_is_not_a_string", value=type(text).__name__)
        if len(text) > self.limits.max_record_bytes:
            return self.too_large(shard, name, len(text))
        return self.document(shard, name, text, row=row, **{field: values[field] for field in self.meta_fields})


def _open(stream: Any) -> Any:
    """The file's footer and readers. ValueError with one line where it is no Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(stream, memory_map=False, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise ValueError(str(error).split("\n")[0]) from error
