"""Records of WARC files, gzip, zstd or plain, with limits, over broken spots; what they hold is `data.sources.warc`'s.

Read with FastWARC (three times as fast as warcio on the same file, and kept up). A gzip member that does not decode
costs that record: reading goes on at the next member.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import zstandard
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from data.sources import files

WANTED = (
    WarcRecordType.response
    | WarcRecordType.resource
    | WarcRecordType.conversion
    | WarcRecordType.metadata
    | WarcRecordType.revisit
)
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
            last = _broken_at(raw, last)
            yield Record(last, WarcRecordType.unknown, {}, 0, b"", "corrupt_record", message)
        faults += message != "record_too_large"
        following = find_next(raw, last + 1, kind)
        if following is None:
            return
        position = following


def _broken_at(raw: BinaryIO, start: int) -> int:
    """Where the record begins that ends reading from `start`: behind the last one, of whatever type, that reads."""
    raw.seek(start)
    whole = None
    try:
        for record in ArchiveIterator(raw, parse_http=False, max_header_len=MAX_HEADER_BYTES):
            whole = record.stream_pos
    except (OSError, ValueError, EOFError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        return start if whole is None else _end_of(raw, whole)
    return start + 1  # it reads now


def _end_of(raw: BinaryIO, start: int) -> int:
    """Where the record at `start` ends, or `start` + 1 where it does not decode to its end."""
    raw.seek(start)
    head = raw.read(MAX_HEADER_BYTES)
    if not head.startswith((GZIP_MAGIC, ZSTD_MAGIC)):
        block, length = head.find(b"\r\n\r\n") + 4, re.search(rb"(?im)^content-length:\s*(\d{1,15})", head)
        return start + (block + int(length.group(1)) + 4 if length else 1)
    gzipped = head.startswith(GZIP_MAGIC)
    decoder: Any = zlib.decompressobj(31) if gzipped else zstandard.ZstdDecompressor().decompressobj()
    position = start
    raw.seek(start)
    while chunk := raw.read(4096):  # a few megabytes when it is a bomb
        try:
            decoder.decompress(chunk)
        except (zlib.error, zstandard.ZstdError):
            break
        position += len(chunk)
        if decoder.eof:
            return position - len(decoder.unused_data)
    return start + 1


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
