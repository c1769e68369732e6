"""WARC, WET and WAT archives: every response as its main text, with limits, over broken spots.

    WarcSource(name="crawl", paths=("CC-MAIN-*.warc.gz",), block=UrlBlockList(domains=("ads.example",)))

Records are read with FastWARC (three times as fast as warcio on the same file, and kept up). A gzip member that does
not decode costs that record: reading goes on at the next member.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, ClassVar

import zstandard
from fastwarc.stream_io import BrotliReader, ChunkedReader, GzipReader, ZstdReader
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from data.document import Document, Dropped
from data.sources import files
from data.sources.base import FileSource
from data.sources.extract import CODE_MODULES as EXTRACT_MODULES
from data.sources.extract import LIBRARIES as EXTRACT_LIBRARIES
from data.sources.extract import ExtractConfig, Extracted, ExtractionPool, Page, share_of_cores
from data.sources.text_files import decode_text
from data.sources.url_block import UrlBlockList
from data.sources.wat import wat_text

WANTED = WarcRecordType.response | WarcRecordType.conversion | WarcRecordType.metadata | WarcRecordType.revisit
HTML_TYPES = ("text/html", "application/xhtml+xml", "application/vnd.wap.xhtml+xml")
GZIP_MAGIC = b"\x1f\x8b\x08"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
PLAIN_MAGIC = b"\r\n\r\nWARC/1."
MAGICS = [GZIP_MAGIC, ZSTD_MAGIC, PLAIN_MAGIC]
MAX_HEADER_BYTES = 1 << 16
MAX_FAULTS = 1000  # broken spots in one file before the rest is given up
SWALLOWED = PLAIN_MAGIC  # a record header inside a block: the length field was wrong
RESTART = ("truncated_record", "corrupt_record", "wrong_record_length", "record_too_large")


@dataclass(frozen=True, slots=True)
class Record:
    """One record, read. offset: bytes from the start of the file, compressed where the file is.

    fault: "" or why `data` is not to be used; `corrupt_record` has no headers where not even those could be read.
    """

    offset: int
    type: WarcRecordType
    headers: Any  # get(name), whatever the case of its letters
    length: int
    data: bytes
    fault: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Body:
    """A decoded payload. fault: "" or why it is not to be used."""

    data: bytes
    fault: str = ""


def iter_records(raw: BinaryIO, limit: int, types: WarcRecordType = WANTED) -> Iterator[Record]:
    """Records of a WARC file (gzip, zstd, plain) with blocks of at most `limit` bytes, going on after broken spots.

    A record that does not decode, is short, or runs into its neighbour has a fault, and reading starts again at the
    next member, frame or record header behind it.
    """
    raw.seek(0)
    kind, position, faults, reported = raw.read(4), 0, 0, -1
    while faults < MAX_FAULTS:
        raw.seek(position)
        last, message = position, ""
        try:
            for record in ArchiveIterator(raw, record_types=types, parse_http=False, max_header_len=MAX_HEADER_BYTES):
                last = record.stream_pos
                found = _read_record(record, limit)
                yield found
                if found.fault in RESTART:
                    reported, message = last, found.fault
                    break  # what FastWARC would pass over to end the record may be a bomb, or other records
            if not message:
                return
        except (OSError, ValueError, EOFError) as error:
            if getattr(error, "errno", None) is not None:
                raise
            message = str(error)
        if reported != last:
            yield Record(last, WarcRecordType.unknown, {}, 0, b"", "corrupt_record", message)
        faults += message != "record_too_large"
        following = find_next(raw, last + 1, kind)
        if following is None:
            return
        position = following


def _read_record(record: WarcRecord, limit: int) -> Record:
    length, data, fault = record.content_length, b"", ""
    if length > limit:
        fault = "record_too_large"
    elif length:
        try:
            data = record.reader.read(length)
            fault = "truncated_record" if len(data) < length else "wrong_record_length" if SWALLOWED in data else ""
        except (OSError, ValueError, EOFError):
            fault = "corrupt_record"
    return Record(record.stream_pos, record.record_type, record.headers, length, data, fault)


def find_next(raw: BinaryIO, start: int, kind: bytes) -> int | None:
    """Where the next record begins at or after `start`: a gzip member or zstd frame that opens with WARC, or a header.

    kind: the first four bytes of the file, which may be damaged themselves: then any of the three counts. None at the
    end.
    """
    known = [magic for magic in MAGICS if kind.startswith(magic[:3])] or ([PLAIN_MAGIC] if kind == b"WARC" else MAGICS)
    pattern = re.compile(b"|".join(map(re.escape, known)))
    raw.seek(start)
    base, buffer = start, b""
    while chunk := raw.read(files.BUFFER):
        buffer += chunk
        for found in pattern.finditer(buffer):
            if _starts_record(raw, base + found.start(), found.group()):
                return base + found.start() + (4 if found.group() == PLAIN_MAGIC else 0)
        raw.seek(base + len(buffer))
        keep = max(len(buffer) - (len(PLAIN_MAGIC) - 1), 0)
        base, buffer = base + keep, buffer[keep:]
    return None


def _starts_record(raw: BinaryIO, position: int, magic: bytes) -> bool:
    if magic == PLAIN_MAGIC:
        return True
    raw.seek(position)
    head = raw.read(1 << 16 if magic == ZSTD_MAGIC else 4096)
    try:
        if magic == GZIP_MAGIC:
            return zlib.decompressobj(31).decompress(head, 16).startswith(b"WARC/")
        return zstandard.ZstdDecompressor().stream_reader(head).read(16).startswith(b"WARC/")
    except (zlib.error, zstandard.ZstdError):
        return False


def split_http(block: bytes) -> tuple[int, dict[str, str], bytes]:
    """(status, headers by lower-case name, payload as sent); status 0 where the block is not HTTP."""
    head, separator, payload = block.partition(b"\r\n\r\n")
    if not separator:
        head, separator, payload = block.partition(b"\n\n")
    lines = head.decode("latin-1").splitlines()
    first = lines[0].split(None, 2) if lines else []
    if len(first) < 2 or not first[0].startswith("HTTP/") or not first[1].isdigit():
        return 0, {}, b""
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers.setdefault(name.strip().lower(), value.strip())
    return int(first[1]), headers, payload


def decode_payload(payload: bytes, headers: Mapping[str, str], limit: int) -> Body:
    """The payload without its transfer and content encodings, at most `limit` bytes.

    Archives often store payloads decoded and keep the header: bytes that do not decode are taken as they are.
    """
    if "chunked" in headers.get("transfer-encoding", "").lower():
        payload = _undo(ChunkedReader, payload, limit) or payload
    for coding in reversed(headers.get("content-encoding", "").lower().replace(" ", "").split(",")):
        reader = {"gzip": GzipReader, "x-gzip": GzipReader, "br": BrotliReader, "zstd": ZstdReader}.get(coding)
        if reader is GzipReader and not payload.startswith(GZIP_MAGIC[:2]):
            continue
        if reader is not None:
            payload = _undo(reader, payload, limit) or payload
    return Body(payload, "record_too_large" if len(payload) > limit else "")


def _undo(reader: Any, payload: bytes, limit: int) -> bytes:
    """Decoded bytes up to limit + 1; b"" where the payload is not so encoded."""
    parts, size = [], 0
    try:
        opened = reader(io.BytesIO(payload))
        while size <= limit and (part := opened.read(min(1 << 16, limit + 1 - size))):
            parts.append(part)
            size += len(part)
    except (OSError, ValueError, EOFError):
        if not parts:
            return b""
    return b"".join(parts)


@dataclass(frozen=True, kw_only=True)
class WarcSource(FileSource):
    """Documents of WARC (main text of HTML responses), WET (their text) and WAT (titles and descriptions).

    extract: how HTML becomes text. block: pages that are not wanted, by URL.
    statuses: HTTP status codes whose pages are read.
    """

    extract: ExtractConfig = field(default_factory=ExtractConfig)
    block: UrlBlockList = field(default_factory=UrlBlockList)
    statuses: tuple[int, ...] = (200,)

    suffixes: ClassVar[tuple[str, ...]] = (".warc", ".wet", ".wat", ".arc")
    version: ClassVar[int] = 1
    code_modules: ClassVar[tuple[str, ...]] = (
        *FileSource.code_modules,
        "data.sources.warc",
        "data.sources.wat",
        "data.sources.jsonl",
        "data.sources.url_block",
        *EXTRACT_MODULES,
    )
    libraries: ClassVar[tuple[str, ...]] = ("FastWARC", *EXTRACT_LIBRARIES)

    def inputs_key(self) -> Any:
        """The archives and the block lists."""
        return {"archives": super().inputs_key(), "block": self.block.inputs_key()}

    def shards(self) -> Sequence[dict[str, Any]]:
        """One shard an archive, which knows of how many it is one: that is how extraction shares the cores."""
        found = super().shards()
        return [{**shard, "of": len(found)} for shard in found]

    def file_documents(self, file: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """Pages in archive order; extraction runs on other cores meanwhile."""
        with files.open_bytes(file["url"]) as raw:
            yield from self.from_archive(raw, file, workers=share_of_cores(file.get("of", 1)))

    def from_archive(self, raw: BinaryIO, shard: Mapping[str, Any], *, workers: int) -> Iterator[Document | Dropped]:
        """Documents and drops of one open archive; `shard["key"]` names it in ids."""
        blocked = self.block.build()
        opened: ExtractionPool[tuple[int, dict[str, Any]]] = ExtractionPool(self.extract, workers=workers)
        with opened as pool:
            for (offset, meta), found in pool.map(self.pages(raw, blocked)):
                values = {**meta, **found.meta}
                if found.reason:
                    yield self.drop(shard, offset, found.reason, value=values.pop("value", None), **values)
                else:
                    yield self.document(shard, offset, found.text, **values)

    def pages(self, raw: BinaryIO, blocked: Any) -> Iterator[tuple[tuple[int, dict[str, Any]], Page | Extracted]]:
        """((offset, meta), page to extract or finished text or reason) of every record that holds a page."""
        for record in iter_records(raw, self.limits.max_record_bytes):
            url = (record.headers.get("warc-target-uri") or "").strip("<>")
            meta: dict[str, Any] = {
                "url": url,
                "offset": record.offset,
                "record_id": record.headers.get("warc-record-id"),
                "crawl_date": record.headers.get("warc-date"),
                "truncated_by_crawler": record.headers.get("warc-truncated"),
                "group": blocked.host(url),
            }
            page = self._page(record, url, meta, blocked)
            if page is not None:
                yield (record.offset, meta), page

    def _page(self, record: Record, url: str, meta: dict[str, Any], blocked: Any) -> Page | Extracted | None:
        """A page to extract, a finished text, a reason, or None for records that hold no page."""
        if record.type == WarcRecordType.metadata and "json" not in (record.headers.get("content-type") or ""):
            return None
        if record.fault:
            return Extracted("", {"value": record.message or record.length}, record.fault)
        if record.type == WarcRecordType.revisit:
            return Extracted("", {}, "revisit")
        if (rule := blocked.match(url)) is not None:
            return Extracted("", {"value": rule}, "url_blocked")
        if record.type == WarcRecordType.conversion:
            meta["language_hint"] = record.headers.get("warc-identified-content-language")
            return _text(record.data, "")
        if record.type == WarcRecordType.metadata:
            text, more = wat_text(record.data)
            meta.update(more)
            return Extracted(text, {}, "" if text else "no_main_text")
        return self._response(record.data, url, meta)

    def _response(self, block: bytes, url: str, meta: dict[str, Any]) -> Page | Extracted:
        status, headers, payload = split_http(block)
        content_type = headers.get("content-type", "")
        kind = content_type.partition(";")[0].strip().lower()
        meta.update(content_type=kind, http_status=status)
        if status not in self.statuses:
            return Extracted("", {"value": status}, "http_status")
        body = decode_payload(payload, headers, self.extract.max_page_bytes)
        if body.fault:
            return Extracted("", {"value": len(body.data)}, "page_too_large")
        if kind == "text/plain":
            return _text(body.data, "text/plain")
        if kind in HTML_TYPES or (not kind and b"<html" in body.data[:2000].lower()):
            return Page(body.data, url, content_type)
        return Extracted("", {"value": kind or "none"}, "content_type")


def _text(data: bytes, extractor: str) -> Extracted:
    try:
        text, encoding = decode_text(data)
    except ValueError as error:
        return Extracted("", {"value": str(error)}, "bad_encoding")
    meta = {"encoding": encoding, **({"extractor": extractor} if extractor else {})}
    return Extracted(text.strip(), meta, "" if text.strip() else "empty_text")
