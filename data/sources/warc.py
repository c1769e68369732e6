"""WARC, WET and WAT archives: every response as its main text, with limits, over broken spots.

WarcSource(name="crawl", paths=("CC-MAIN-*.warc.gz",), block=UrlBlockList(domains=("ads.example",)))
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, ClassVar

from fastwarc.stream_io import BrotliReader, ChunkedReader, GzipReader, ZstdReader
from fastwarc.warc import WarcRecordType
from w3lib.encoding import http_content_type_encoding

from data.document import Document, Dropped
from data.sources import files
from data.sources.base import FileSource
from data.sources.extract import CODE_MODULES as EXTRACT_MODULES
from data.sources.extract import LIBRARIES as EXTRACT_LIBRARIES
from data.sources.extract import ExtractConfig, Extracted, ExtractionPool, Page, share_of_cores
from data.sources.text_files import decode_text
from data.sources.url_block import UrlBlockList
from data.sources.warc_records import GZIP_MAGIC, Record, iter_records
from data.sources.wat import wat_text

PAGE_SCHEMES = ("http://", "https://", "ftp://", "file:")  # of resources: wget's own log is one too, metadata://
UNICODE = ("utf-8", "utf-8-sig", "utf-16")  # what the bytes themselves say
HTML_TYPES = ("text/html", "application/xhtml+xml", "application/vnd.wap.xhtml+xml")


@dataclass(frozen=True, slots=True)
class Body:
    """A decoded payload. fault: "" or why it is not to be used."""

    data: bytes
    fault: str = ""


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
    decoders: dict[str, Any] = {"gzip": GzipReader, "x-gzip": GzipReader, "br": BrotliReader, "zstd": ZstdReader}
    decoders["deflate"] = _Deflate
    for coding in reversed(headers.get("content-encoding", "").lower().replace(" ", "").split(",")):
        reader = decoders.get(coding)
        if reader is GzipReader and not payload.startswith(GZIP_MAGIC[:2]):
            continue
        if reader is not None:
            payload = _undo(reader, payload, limit) or payload
    return Body(payload, "record_too_large" if len(payload) > limit else "")


class _Deflate:
    """HTTP's deflate: zlib's format by the standard, bare by some servers."""

    def __init__(self, stream: io.BytesIO) -> None:
        self._rest = stream.read()
        zlib_head = len(self._rest) > 1 and self._rest[0] & 15 == 8 and int.from_bytes(self._rest[:2], "big") % 31 == 0
        self._decoder = zlib.decompressobj(15 if zlib_head else -15)

    def read(self, size: int) -> bytes:
        """At most `size` bytes. ValueError where it is not so encoded."""
        try:
            data = self._decoder.decompress(self._rest, size)
        except zlib.error as error:
            raise ValueError(str(error)) from error
        self._rest = self._decoder.unconsumed_tail
        return data


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
    version: ClassVar[int] = 4
    code_modules: ClassVar[tuple[str, ...]] = (
        *FileSource.code_modules,
        "data.sources.warc",
        "data.sources.warc_records",
        "data.sources.wat",
        "data.sources.jsonl",
        "data.sources.text_files",
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
            last, number = -1, 0
            for (offset, meta), found in pool.map(self.pages(raw, blocked)):
                number, last = number + 1 if offset == last else 0, offset
                record = f"{offset}.{number}" if number else offset  # a file compressed as one has one offset for many
                values = {**meta, **found.meta}
                if found.reason:
                    yield self.drop(shard, record, found.reason, value=values.pop("value", None), **values)
                else:
                    yield self.document(shard, record, found.text, **values)

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
        content_type = record.headers.get("content-type") or ""
        if record.type == WarcRecordType.metadata and "json" not in content_type:
            return None
        if record.type == WarcRecordType.resource and not url.lower().startswith(PAGE_SCHEMES):
            return None
        if record.fault:
            return Extracted("", {"value": record.message or record.length}, record.fault)
        if record.type == WarcRecordType.revisit:
            return Extracted("", {}, "revisit")
        if (rule := blocked.match(url)) is not None:
            return Extracted("", {"value": rule}, "url_blocked")
        if record.type == WarcRecordType.conversion:
            meta["language_hint"] = record.headers.get("warc-identified-content-language")
            return _text(record.data, "", "")
        if record.type == WarcRecordType.metadata:
            text, more = wat_text(record.data)
            meta.update(more)
            return Extracted(text, {}, "" if text else "no_main_text")
        if record.type == WarcRecordType.resource:
            return self._content(record.data, {}, url, content_type, meta)
        return self._response(record.data, url, meta)

    def _response(self, block: bytes, url: str, meta: dict[str, Any]) -> Page | Extracted:
        status, headers, payload = split_http(block)
        content_type = headers.get("content-type", "")
        meta.update(content_type=_kind(content_type), http_status=status)
        if status not in self.statuses:
            return Extracted("", {"value": status}, "http_status")
        return self._content(payload, headers, url, content_type, meta)

    def _content(
        self, payload: bytes, headers: Mapping[str, str], url: str, content_type: str, meta: dict[str, Any]
    ) -> Page | Extracted:
        kind = _kind(content_type)
        meta["content_type"] = kind
        body = decode_payload(payload, headers, self.extract.max_page_bytes)
        if body.fault:
            return Extracted("", {"value": len(body.data)}, "page_too_large")
        if kind == "text/plain":
            return _text(body.data, "text/plain", content_type)
        if kind in HTML_TYPES or (not kind and b"<html" in body.data[:2000].lower()):
            return Page(body.data, url, content_type)
        return Extracted("", {"value": kind or "none"}, "content_type")


def _kind(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _text(data: bytes, extractor: str, content_type: str) -> Extracted:
    """Plain text; servers that name a charset are believed where the bytes are no UTF-8."""
    named, encoding = http_content_type_encoding(content_type), ""
    try:
        text, encoding = decode_text(data)
    except ValueError as error:
        if not named:
            return Extracted("", {"value": str(error)}, "bad_encoding")
    if named and encoding not in UNICODE:
        text, encoding = data.decode(named, "replace"), named
    meta = {"encoding": encoding, **({"extractor": extractor} if extractor else {})}
    return Extracted(text.strip(), meta, "" if text.strip() else "empty_text")
