"""WARC output of a crawl: one gzip member a page, files of 1 GB, cut back to what the frontier knows on start."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from fastwarc.stream_io import GzipWriter
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

ROTATE_BYTES = 1 << 30
HOP_HEADERS = {"transfer-encoding", "content-length", "connection", "keep-alive"}  # of the connection, not of the page


def _has_pages(path: Path) -> bool:
    """Whether an archive holds a response, or cannot be read and so may hold one."""
    with path.open("rb") as raw:
        try:
            return any(True for _ in ArchiveIterator(raw, record_types=WarcRecordType.response, parse_http=False))
        except (OSError, ValueError, EOFError):
            return True


class ArchiveWriter:
    """Appends records to `folder/crawl-NNNNN.warc.gz`.

    known: (file, bytes) that the frontier has on record; what lies behind was not committed and is cut off.
    new: whether the frontier is new. Pages in the folder are then another crawl's: ValueError, and nothing is touched.
    """

    def __init__(self, folder: Path, known: tuple[str, int] | None, user_agent: str, *, new: bool) -> None:
        if new and (full := next(filter(_has_pages, sorted(folder.glob("crawl-*.warc.gz"))), None)):
            raise ValueError(
                f"{full} holds pages and their frontier is gone: put frontier.sqlite back, move {folder} away, or set"
                " another folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._user_agent = folder, user_agent
        self._number = int(known[0].split("-")[1].split(".")[0]) if known else 0
        for later in folder.glob("crawl-*.warc.gz"):  # begun and never committed
            if int(later.name.split("-")[1].split(".")[0]) > self._number or known is None:
                later.unlink()
        self._file = (folder / self.name).open("ab")
        if known is not None and known[1] <= self._file.tell():
            self._file.truncate(known[1])
            self._file.seek(known[1])
        if self._file.tell() == 0:
            self._write_info()

    @property
    def name(self) -> str:
        """Name of the file that is written now."""
        return f"crawl-{self._number:05d}.warc.gz"

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write_info(self) -> None:
        record = WarcRecord()
        record.init_headers(WarcRecordType.warcinfo)
        record.headers["Content-Type"] = "application/warc-fields"
        record.headers["WARC-Filename"] = self.name
        lines = (
            "software: Sluice data.crawl",
            "format: WARC File Format 1.1",
            f"http-header-user-agent: {self._user_agent}",
        )
        record.set_bytes_content("".join(f"{line}\r\n" for line in lines).encode())
        self._append(record)

    def _append(self, record: WarcRecord) -> None:
        stream = io.BytesIO()
        writer = GzipWriter(stream)
        record.write(writer)
        writer.finish()
        self._file.write(stream.getvalue())
        self._file.flush()
        os.fsync(self._file.fileno())

    def write(
        self, url: str, status: int, headers: Iterable[tuple[str, str]], body: bytes, address: str
    ) -> tuple[str, int]:
        """Append one response; (file name, its length with this record), once the record is on disk."""
        if self._file.tell() > ROTATE_BYTES:
            self._file.close()
            self._number += 1
            self._file = (self._folder / self.name).open("ab")
            self._write_info()
        record = WarcRecord()
        record.init_headers(WarcRecordType.response)
        record.headers["WARC-Target-URI"] = url
        record.headers["WARC-Date"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        record.headers["Content-Type"] = "application/http;msgtype=response"
        if address:
            record.headers["WARC-IP-Address"] = address
        lines = [f"HTTP/1.1 {status} {'OK' if status == 200 else '-'}"]
        lines += [f"{name}: {value}" for name, value in headers if name.lower() not in HOP_HEADERS]
        lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join(line.replace("\r", " ").replace("\n", " ") for line in lines)
        record.set_bytes_content(head.encode("latin-1", "replace") + b"\r\n\r\n" + body)
        self._append(record)
        return self.name, self._file.tell()
