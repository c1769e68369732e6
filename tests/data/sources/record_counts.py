"""How many records a file holds, counted without the reader; None where the wounds leave no one answer."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable
from typing import Any

from data.sources.files import BUFFER


def blocks(tag: str) -> Callable[[bytes], int]:
    """Elements of a name, the last of which may never end."""
    pattern = re.compile(rf"<{tag}(?=[\s>/]).*?(?:</{tag}>|\Z)".encode(), re.S)
    return lambda data: sum(1 for _ in pattern.finditer(data))


def lines_of(data: bytes) -> int:
    return sum(bool(line.strip()) for line in data.split(b"\n"))


def posts_of(data: bytes) -> int:
    wrapper = re.compile(rb"(\xef\xbb\xbf)?<(\?xml|/?posts)")
    return sum(bool(line.strip()) and not wrapper.match(line.strip()) for line in data.split(b"\n"))


def as_json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def tweets_of(data: bytes) -> int:
    """Posts of API v1.1 and of v2 pages; a retweet counts with what it repeats, a line that is no object as one."""
    if data[:256].lstrip()[:1] == b"[":
        values, whole = array_of(data.decode("utf-8", "surrogateescape").lstrip()[1:])
        return sum(map(posts_in, values)) + (not whole)
    return sum(posts_in(as_json(line)) for line in data.split(b"\n") if line.strip())


def array_of(text: str) -> tuple[list[Any], bool]:
    """(values up to the first fault, whether there is none) of what stands behind the bracket of an array."""
    values: list[Any] = []
    text = text.lstrip(" \t\r\n")
    while not text.startswith("]") or values:
        try:
            value, end = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError):
            return values, False
        values.append(value if text[:end].encode("utf-8", "replace").decode() == text[:end] else None)
        mark, text = text[end:].lstrip(" \t\r\n")[:1], text[end:].lstrip(" \t\r\n")[1:].lstrip(" \t\r\n")
        if mark == "]":
            return values, not text.strip(" \t\r\n;")
        if mark != ",":
            return values, False
    return values, not text[1:].strip(" \t\r\n;")


def posts_in(value: Any) -> int:
    if not isinstance(value, dict):
        return 1
    main, more = value.get("data", value), value.get("includes")
    tweets = more.get("tweets") if isinstance(more, dict) else None
    posts = [*(main if isinstance(main, list) else [main]), *(tweets if isinstance(tweets, list) else [])]
    return sum(1 + isinstance(post.get("retweeted_status") if isinstance(post, dict) else None, dict) for post in posts)


def gzip_lines(data: bytes) -> int:
    """Whole lines in front of the fault, and one for the fault."""
    if data[:2] != b"\x1f\x8b":
        return lines_of(data)
    text, stream = b"", gzip.GzipFile(fileobj=io.BytesIO(data))
    try:
        while block := stream.read1(BUFFER):
            text += block
    except (OSError, EOFError, zlib.error):
        return lines_of(text.rpartition(b"\n")[0]) + 1
    return lines_of(text)


def messages_of(data: bytes) -> int:
    """mbox: a From line begins a message at the start and behind an empty line; what stands before the first is one."""
    count, blank = 0, True
    for line in data.splitlines(keepends=True) if b"\r" not in data else io.BytesIO(data):
        count += bool((re.match(rb"From \S.*\d\d:\d\d", line) and blank) or not count)
        blank = line in (b"\n", b"\r\n")
    return count


def csv_rows(data: bytes) -> int:
    """Rows behind the header; one where there is no usable header."""
    lines = (line.decode("utf-8", "replace") for line in io.BytesIO(data))
    rows, count = csv.reader(lines), 0
    try:
        header = next(rows, None) or []
    except csv.Error:
        return 1
    if "text" not in (name.removeprefix("\ufeff") for name in header):
        return 1
    while True:
        try:
            count += bool(next(rows))
        except csv.Error:
            count += 1
        except StopIteration:
            return count


def parquet_rows(data: bytes) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(io.BytesIO(data))
    except (pa.ArrowException, OSError):
        return 1
    return int(table.metadata.num_rows) if "text" in table.schema_arrow.names else 1


def topic_posts(data: bytes) -> int | None:
    try:
        posts = json.loads(data)["post_stream"]["posts"]
    except (ValueError, KeyError, TypeError):
        return 1
    return len(posts) or None if isinstance(posts, list) else 1


def one(data: bytes) -> int:
    return 1


RECORDS: dict[str, Callable[[bytes], int | None]] = {
    "stack_exchange": posts_of, "jats": one, "pubmed": blocks("PubmedArticle"), "oai": blocks("record"), "arxiv": one,
    "gutenberg": one, "text": one, "jsonl": lines_of, "csv": csv_rows, "parquet": parquet_rows, "reddit": lines_of,
    "mediawiki": blocks("page"), "twitter": tweets_of, "twitter_pages": tweets_of,
    "jsonl_gz": gzip_lines, "mbox": messages_of, "discourse": topic_posts, "notebook": one,
    "notebook_3": one,
}  # fmt: skip


def whole_members(data: bytes) -> set[int]:
    """WARC: offsets of the gzip members that are whole, say their right length, and are of a type that is read."""
    found = set()
    for hit in re.finditer(rb"\x1f\x8b\x08", data):
        try:
            member = zlib.decompressobj(31)
            text = member.decompress(data[hit.start() :], 8 << 20)
        except zlib.error:
            continue
        head, _, rest = text.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)\r\n", head + b"\r\n")
        kind = re.search(rb"\r\nWARC-Type: (response|conversion|revisit)\r\n", head + b"\r\n")
        if member.eof and text.startswith(b"WARC/1.") and length and kind and len(rest) == int(length[1]) + 4:
            found.add(hit.start())
    return found
