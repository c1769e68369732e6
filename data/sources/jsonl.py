"""JSON Lines: one object a line, plain, gzip or zstd.

    JsonlSource(name="web", paths=("dumps/*.jsonl.zst",), text_field="content", meta_fields=("url", "date"))

Plain local files are cut into shards of `split_bytes` at line ends, so that one huge file keeps every core busy; ids
are byte offsets of lines and so do not depend on the cut.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from data.document import Document, Dropped
from data.sources import files
from data.sources.base import FileSource
from data.sources.remote import is_remote


def lookup(record: Any, path: str) -> Any:
    """record["a"]["b"] for "a.b"; None where a step is missing."""
    for part in path.split("."):
        if not isinstance(record, dict) or part not in record:
            return None
        record = record[part]
    return record


def as_dict(value: Any) -> dict[str, Any]:
    """The value where it is an object, else an empty one: JSON from outside has any type anywhere."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """The value where it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def parse_object(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """A line's JSON object, or (None, reason)."""
    try:
        record = json.loads(line)
    except UnicodeDecodeError:
        return None, "bad_encoding"
    except (ValueError, RecursionError):
        return None, "bad_json"
    return (record, "") if isinstance(record, dict) else (None, "not_an_object")


@dataclass(frozen=True, kw_only=True)
class JsonlSource(FileSource):
    """JSON Lines.

    text_field: where the text is; dots reach into objects.
    id_field: the record's own id, used in ours before the byte offset.
    meta_fields: fields carried into meta under their own names.
    split_bytes: target bytes of a shard of a plain local file.
    """

    text_field: str = "text"
    id_field: str | None = None
    meta_fields: tuple[str, ...] = ()
    split_bytes: int = 256 << 20

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson", ".json")
    code_modules: ClassVar[tuple[str, ...]] = (*FileSource.code_modules, "data.sources.jsonl")

    def shards(self) -> Sequence[dict[str, Any]]:
        """One shard a compressed or remote file; ranges of bytes of plain local ones."""
        shards: list[dict[str, Any]] = []
        for entry in self.entries():
            whole = {"url": entry.url, "key": entry.key}
            if is_remote(entry.url) or entry.size <= self.split_bytes or files.is_compressed(entry.url):
                shards.append(whole)
                continue
            starts = range(0, entry.size, self.split_bytes)
            shards += [{**whole, "start": start, "stop": min(start + self.split_bytes, entry.size)} for start in starts]
        return shards

    def read(self, stream: Any, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """A line belongs to the shard in which it starts."""
        start, stop = shard.get("start", 0), shard.get("stop")
        if start:
            stream = files.open_range(shard["url"], start - 1, self.limits)
            start += files.skip_line(stream) - 1
        for relative, line in files.iter_lines(stream, self.limits):
            offset = start + relative
            if stop is not None and offset >= stop:
                return
            yield self._document(shard, offset, line)

    def _document(self, shard: Mapping[str, Any], offset: int, line: bytes | int) -> Document | Dropped:
        if isinstance(line, int):
            return self.too_large(shard, offset, line)
        record, reason = parse_object(line)
        if record is None:
            return self.drop(shard, offset, reason, text=line[:300].decode("utf-8", "replace"))
        own = lookup(record, self.id_field) if self.id_field else None
        text = lookup(record, self.text_field)
        name = offset if own is None else f"{own}@{offset}"
        meta = {field: lookup(record, field) for field in self.meta_fields}
        if text is None:
            return self.drop(shard, name, "no_text_field", value=self.text_field)
        if not isinstance(text, str):
            return self.drop(shard, name, "text_is_not_a_string", value=type(text).__name__)
        return self.document(shard, name, text, offset=offset, **meta)
