"""CSV and TSV files with a header line, plain or compressed.

CsvSource(name="reviews", paths=("reviews.csv.gz",), text_field="body", meta_fields=("stars",))
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from data.document import Document, Dropped
from data.sources import files
from data.sources.base import FileSource


class TooLargeError(csv.Error):
    """A record beyond the limit; what was read of it is gone."""


class _Lines:
    """Lines for csv.reader, decoded one at a time; refuses a record that grows beyond the limit."""

    def __init__(self, stream: Any, limit: int) -> None:
        self._stream, self._limit = stream, limit
        self.record_bytes, self.bad_encoding = 0, False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(self._limit + 1)
        if not line:
            raise StopIteration
        self.record_bytes += len(line)
        if self.record_bytes > self._limit:
            if not line.endswith(b"\n"):
                self.record_bytes += files.skip_line(self._stream)
            raise TooLargeError(f"{self.record_bytes} bytes")
        try:
            return str(line.decode())
        except UnicodeDecodeError:
            self.bad_encoding = True
            return str(line.decode("utf-8", "replace"))


@dataclass(frozen=True, kw_only=True)
class CsvSource(FileSource):
    """Rows of CSV files; a quoted field may hold line ends.

    text_field, id_field, meta_fields: names in the header; the id stands before the row number in ours.
    delimiter: one character; a tab is taken for names that end in .tsv.
    """

    text_field: str = "text"
    id_field: str | None = None
    meta_fields: tuple[str, ...] = ()
    delimiter: str = ","

    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".tsv")
    code_modules: ClassVar[tuple[str, ...]] = (*FileSource.code_modules, "data.sources.csv_files")

    def __post_init__(self) -> None:
        if len(self.delimiter) != 1:
            raise ValueError(f"{self.name}: delimiter is {self.delimiter!r}: expected one character")

    def read(self, stream: Any, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """One document a row; a quote that never closes costs `max_record_bytes`, reading goes on behind."""
        name = shard["key"].lower()
        delimiter = "\t" if ".tsv" in name[-8:] else self.delimiter
        lines = _Lines(stream, self.limits.max_record_bytes)
        csv.field_size_limit(self.limits.max_record_bytes)
        rows = csv.reader(lines, delimiter=delimiter, strict=False)
        try:
            header = next(rows, None)
        except csv.Error as error:
            yield self.drop(shard, "header", "bad_csv", value=str(error))
            return
        if not header:
            yield self.drop(shard, "header", "empty_file")
            return
        header[0] = header[0].removeprefix("\ufeff")
        if self.text_field not in header:
            yield self.drop(shard, "header", "no_text_field", value=f"{self.text_field} not in {', '.join(header)}")
            return
        number = 0
        while True:
            lines.record_bytes, lines.bad_encoding = 0, False
            number += 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                reason = "record_too_large" if isinstance(error, TooLargeError) else "bad_csv"
                yield self.drop(shard, number, reason, value=str(error))
                continue
            if row:
                yield self._document(shard, number, header, row, lines.bad_encoding)

    def _document(
        self, shard: Mapping[str, Any], number: int, header: list[str], row: list[str], bad_encoding: bool
    ) -> Document | Dropped:
        if bad_encoding:
            return self.drop(shard, number, "bad_encoding")
        if len(row) != len(header):
            return self.drop(shard, number, "wrong_number_of_fields", value=len(row), threshold=len(header))
        values = dict(zip(header, row))
        record = values.get(self.id_field) if self.id_field else None
        meta = {field: values.get(field) for field in self.meta_fields}
        name = f"{record}@{number}" if record else number
        return self.document(shard, name, values[self.text_field], row=number, **meta)
