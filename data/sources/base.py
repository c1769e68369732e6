"""What every reader of files shares: listing shards, naming documents, counting what could not be read.

A reader is a frozen dataclass over `FileSource` with one method, `read`, which yields documents and drops of one open
file. Faults of the whole file (truncated, corrupt, a bomb) end that file with one counted drop; the run goes on.
"""

from __future__ import annotations

import io
import json
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from data.document import Document, Drop, Dropped, Number
from data.sources import files
from data.sources.limits import BombError, CorruptError, FetchError, ReadLimits, TooLargeError

SURROGATE = re.compile("[\ud800-\udfff]")  # a lone half of a UTF-16 pair: JSON can say it, UTF-8 cannot
ESCAPED_IN_ID = re.compile("[\\s%\ud800-\udfff]")  # as in a URL, so that no two names become one id
STEP = "read"


def clean_text(text: str) -> str:
    """Text that UTF-8 can hold: lone surrogates become U+FFFD, line ends become \\n."""
    text = SURROGATE.sub("\ufffd", text)
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def clean_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values only; empty ones left out; what JSON cannot hold as its str()."""
    kept = {key: value for key, value in meta.items() if value is not None and value != "" and value != []}
    text = json.dumps(kept, ensure_ascii=False, default=str, allow_nan=True)
    kept = json.loads(SURROGATE.sub("\ufffd", text), parse_constant=str)
    return dict(kept)


def _id(source: str, record: str) -> str:
    return ESCAPED_IN_ID.sub(
        lambda found: urllib.parse.quote(found.group().encode("utf-8", "surrogatepass")), f"{source}:{record}"
    )


def make_document(source: str, record: str, text: str, meta: Mapping[str, Any]) -> Document | Dropped:
    """The document `source:record`, or a drop `empty_text` where there is nothing but white space."""
    if not text.strip():
        return make_drop(source, record, "empty_text", meta=meta)
    return Document(id=_id(source, record), text=clean_text(text), source=source, meta=clean_meta(meta))


def make_drop(
    source: str,
    record: str,
    reason: str,
    *,
    value: Number | str | None = None,
    threshold: Number | str | None = None,
    meta: Mapping[str, Any] | None = None,
    text: str = "",
) -> Dropped:
    """A record that could not be read or is not wanted, counted under `reason`."""
    document = Document(id=_id(source, record), text=clean_text(text), source=source, meta=clean_meta(meta or {}))
    if isinstance(value, str):
        value = clean_text(value)[:300]
    return Dropped(document, STEP, Drop(reason, value, threshold))


@dataclass(frozen=True, kw_only=True)
class FileSource:
    """Files of one format.

    name: how documents, recipes and mixture weights call this source.
    paths: files, folders or globs; local or any fsspec URL.
    licence: SPDX name or URL, where the whole source has one.
    language: ISO 639-1 code, where the whole source has one.
    """

    name: str
    paths: tuple[str, ...]
    licence: str | None = None
    language: str | None = None
    limits: ReadLimits = field(default_factory=ReadLimits)

    version: ClassVar[int] = 2
    code_modules: ClassVar[tuple[str, ...]] = (
        "data.sources.base",
        "data.sources.files",
        "data.sources.remote",
    )
    libraries: ClassVar[tuple[str, ...]] = ()
    suffixes: ClassVar[tuple[str, ...]] = ()
    files_per_shard: ClassVar[int] = 1  # formats of many small files put several into a shard

    def entries(self) -> list[files.FileEntry]:
        """The input files in id order."""
        return files.list_files(self.paths, self.suffixes)

    def shards(self) -> Sequence[dict[str, Any]]:
        """One shard a file, {"url", "key"}; for formats of small files {"files": [{"url", "key"}, ...]}."""
        found = [{"url": entry.url, "key": entry.key} for entry in self.entries()]
        if self.files_per_shard == 1:
            return found
        return [
            {"files": found[index : index + self.files_per_shard]}
            for index in range(0, len(found), self.files_per_shard)
        ]

    def inputs_key(self) -> Any:
        """[key, bytes, fingerprint] of every file."""
        return [[entry.key, entry.size, files.fingerprint(entry)] for entry in self.entries()]

    def documents(self, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """Stream the files of a shard; a fault of a file as a whole is the last thing counted in it."""
        for file in shard.get("files", [shard]):
            try:
                yield from self.file_documents(file)
            except CorruptError as error:
                yield self.drop(file, "end", "corrupt_file", value=str(error))
            except BombError as error:
                yield self.drop(file, "end", "expands_too_far", value=str(error))
            except FetchError as error:
                yield self.drop(file, "end", "fetch_failed", value=str(error))
            except TooLargeError:
                limit = self.limits.max_record_bytes
                yield self.drop(file, None, "record_too_large", value=f"over {limit}", threshold=limit)

    def file_documents(self, file: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """Stream one file. CorruptError, BombError or FetchError end it."""
        with self.open(file) as stream:
            yield from self.read(stream, file)

    def open(self, shard: Mapping[str, Any]) -> io.BufferedReader:
        """Decompressed bytes of the shard's file."""
        return files.open_stream(shard["url"], self.limits)

    def read_file(self, stream: io.BufferedReader) -> bytes:
        """All of a file that is one record. TooLargeError, which `documents` counts, beyond `max_record_bytes`."""
        data = stream.read(self.limits.max_record_bytes + 1)
        if len(data) > self.limits.max_record_bytes:
            raise TooLargeError
        return data

    def read(self, stream: io.BufferedReader, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """Documents and drops of one open file: what a reader writes."""
        raise NotImplementedError(f"{type(self).__name__} reads no streams")

    def document(self, shard: Mapping[str, Any], record: Any, text: str, /, **meta: Any) -> Document | Dropped:
        """A document of this source; `record` names it inside its file (None: the file is the document).

        Files repeat the ids of their own records, so such a name has the record's place behind it: `12@34567`.
        """
        common = {"path": shard["key"], "licence": self.licence, "language": self.language}
        common.update((key, value) for key, value in meta.items() if value is not None)
        return make_document(self.name, _record_name(shard["key"], record), text, common)

    def drop(
        self,
        shard: Mapping[str, Any],
        record: Any,
        reason: str,
        /,
        *,
        value: Number | str | None = None,
        threshold: Number | str | None = None,
        text: str = "",
        **meta: Any,
    ) -> Dropped:
        """A counted drop of this source."""
        name = _record_name(shard["key"], record)
        meta = {"path": shard["key"], **meta}
        return make_drop(self.name, name, reason, value=value, threshold=threshold, meta=meta, text=text)

    def too_large(self, shard: Mapping[str, Any], record: Any, size: int) -> Dropped:
        """The drop of a record beyond `max_record_bytes`."""
        return self.drop(shard, record, "record_too_large", value=size, threshold=self.limits.max_record_bytes)


def _record_name(key: str, record: Any) -> str:
    return key if record is None else f"{key}:{record}"
