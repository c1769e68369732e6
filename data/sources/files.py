"""Files anywhere, as one bounded stream of decompressed bytes: listing, identity, opening.

Paths go through fsspec (local, `gs://`, `s3://`, `https://`); compression is told by the first bytes of the file, not
by its name. Nothing here holds more than a buffer in memory.
"""

from __future__ import annotations

import bz2
import gzip
import io
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import xxhash
import zstandard

from data.sources.limits import BombError, CorruptError, ReadLimits
from data.sources.remote import filesystem_of, identity, is_remote, local_copy, remote_size

BUFFER = 1 << 20  # bytes
FULL_HASH_BYTES = 256 << 20  # files up to this size are hashed whole, larger ones by 256 evenly spaced blocks of 1 MiB
COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One input file. url: how to open it; key: its name in ids, the same on every machine; size: bytes, or -1."""

    url: str
    key: str
    size: int


def list_files(paths: Sequence[str], suffixes: Sequence[str]) -> list[FileEntry]:
    """Every file named by `paths` (files, folders searched to the bottom, globs), sorted by key.

    In folders only names that end in one of `suffixes` count, with or without .gz, .zst, .bz2; hidden names, sockets,
    pipes and broken links are passed over, and linked folders are not entered. ValueError where nothing is found.
    """
    entries: list[FileEntry] = []
    for path in paths:
        found = _list_remote(path, suffixes) if is_remote(path) else _list_local(path, suffixes)
        if not found:
            raise ValueError(
                f"no input at {path!r}: expected a file, a glob, or a folder with {' '.join(suffixes)} files"
            )
        entries += found
    keys = [entry.key for entry in entries]
    if len(set(keys)) < len(keys):  # the same name below two paths: the position of the path tells them apart
        numbered = []
        for index, path in enumerate(paths):
            part = _list_remote(path, suffixes) if is_remote(path) else _list_local(path, suffixes)
            numbered += [FileEntry(entry.url, f"{index}/{entry.key}", entry.size) for entry in part]
        entries = numbered
    return sorted(entries, key=lambda entry: entry.key)


def _matches(name: str, suffixes: Sequence[str]) -> bool:
    lowered = name.lower()
    for end in COMPRESSED_SUFFIXES:
        lowered = lowered.removesuffix(end)
    return not name.startswith(".") and (not suffixes or lowered.endswith(tuple(suffixes)))


def _list_local(path: str, suffixes: Sequence[str]) -> list[FileEntry]:
    path = path.removeprefix("file://")
    root = Path(path).expanduser()
    if any(character in path for character in "*?[") and not root.exists():  # a title may have brackets itself
        fixed = list(root.parts)
        first = next(index for index, part in enumerate(fixed) if any(c in part for c in "*?["))
        root = Path(*fixed[:first]) if first else Path()
        candidates = [found for found in root.glob(str(Path(*fixed[first:]))) if not found.name.startswith(".")]
    elif root.is_dir():
        candidates = []
        for folder, folders, names in os.walk(root, followlinks=False):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            candidates += [Path(folder) / name for name in names if _matches(name, suffixes)]
    else:
        candidates, root = [root], root.parent
    entries = []
    for found in candidates:
        try:
            status = found.stat()
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            entries.append(FileEntry(str(found), found.relative_to(root).as_posix(), status.st_size))
    return entries


def _list_remote(path: str, suffixes: Sequence[str]) -> list[FileEntry]:
    filesystem, inner = filesystem_of(path)
    wild = any(character in inner for character in "*?[") and not path.startswith("http")
    if wild:
        names = [str(name) for name in filesystem.glob(inner)]
        root = inner[: next(i for i, c in enumerate(inner) if c in "*?[")].rpartition("/")[0]
    elif path.startswith("http") or filesystem.isfile(inner):
        names, root = [inner], inner.rpartition("/")[0]
    else:
        names = [str(name) for name in filesystem.find(inner) if _matches(str(name).rpartition("/")[2], suffixes)]
        root = inner.rstrip("/")
    return [
        FileEntry(url, name.removeprefix(root).lstrip("/"), remote_size(url))
        for name, url in ((name, filesystem.unstrip_protocol(name)) for name in names)
    ]


def fingerprint(entry: FileEntry) -> str:
    """What identifies the content: a hash of a local file (see FULL_HASH_BYTES), the store's own checksum elsewhere."""
    if is_remote(entry.url):
        return identity(entry.url)
    digest = xxhash.xxh3_128()
    with Path(entry.url).open("rb") as stream:
        if entry.size <= FULL_HASH_BYTES:
            while block := stream.read(BUFFER):
                digest.update(block)
        else:
            for index in range(256):
                stream.seek((entry.size - BUFFER) * index // 255)
                digest.update(stream.read(BUFFER))
    return digest.hexdigest()


class BoundedReader(io.RawIOBase):
    """Bytes of an inner reader, counted against a file's limits; decoding faults become CorruptError.

    raw: the compressed stream below, whose position tells how much went in; None when nothing is compressed.
    """

    def __init__(self, inner: Any, raw: BinaryIO | None, limits: ReadLimits) -> None:
        self._inner, self._raw, self._limits = inner, raw, limits
        self._read = getattr(inner, "read1", inner.read)  # read() would lose what it has when the file ends early
        self.total = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._read(len(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
            raise CorruptError(str(error) or type(error).__name__) from error
        except OSError as error:
            if error.errno is not None:  # the disk or the network failed: not the file's fault, so it is no drop
                raise
            raise CorruptError(str(error)) from error
        size = len(data)
        buffer[:size] = data
        self.total += size
        self._check()
        return size

    def _check(self) -> None:
        if self.total > self._limits.max_file_bytes:
            raise BombError(f"more than {self._limits.max_file_bytes} bytes")
        if self._raw is not None and self.total > self._limits.expansion_grace:
            consumed = max(self._raw.tell(), 1)
            if self.total / consumed > self._limits.max_expansion:
                raise BombError(f"expands {self.total / consumed:.0f}-fold, limit {self._limits.max_expansion:.0f}")

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
            if self._raw is not None:
                self._raw.close()
        super().close()


def open_bytes(url: str) -> BinaryIO:
    """The file as stored, seekable; of a remote one its copy in the cache. ValueError where it is missing."""
    try:
        path = local_copy(url) if is_remote(url) else url.removeprefix("file://")
        return Path(path).open("rb")
    except FileNotFoundError as error:
        raise ValueError(f"input file {url!r} is gone: expected it to stay while the run goes on") from error


def open_stream(url: str, limits: ReadLimits, *, max_window_bytes: int = 1 << 27) -> io.BufferedReader:
    """Decompressed bytes of a file (gzip with any number of members, zstd frames, bzip2, or plain), read once.

    max_window_bytes: zstd window accepted; 128 MiB is the format's recommended limit, some dumps need 2 GiB.
    """
    raw = open_bytes(url)
    head = raw.read(4)
    raw.seek(0)
    inner: Any
    if head[:2] == b"\x1f\x8b":
        inner = gzip.GzipFile(fileobj=raw)
    elif head == b"\x28\xb5\x2f\xfd" or (head[1:] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F):
        inner = _Zstd(raw, max_window_bytes)
    elif head[:3] == b"BZh":
        inner = _Bzip2(raw)
    else:
        return io.BufferedReader(BoundedReader(raw, None, limits), BUFFER)
    return io.BufferedReader(BoundedReader(inner, raw, limits), BUFFER)


class _Zstd:
    """zstd frames one after the other. The library's own reader ends a truncated file without an error; this does not.

    Compressed bytes go in 4 KiB at a time: a frame of repeated bytes grows 32,000-fold, which is then 128 MiB at most.
    """

    def __init__(self, raw: BinaryIO, max_window_bytes: int) -> None:
        self._raw, self._decompressor = raw, zstandard.ZstdDecompressor(max_window_size=max_window_bytes)
        self._frame: Any = None
        self._input, self._output = memoryview(b""), memoryview(b"")

    def read(self, size: int) -> bytes:
        while not self._output:
            if not self._input:
                self._input = memoryview(self._raw.read(BUFFER))
                if not self._input:
                    if self._frame is not None:
                        raise EOFError("the last zstd frame ends early")
                    return b""
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            piece, self._input = self._input[:4096], self._input[4096:]
            self._output = memoryview(self._frame.decompress(piece))
            if self._frame.eof:
                self._input = memoryview(self._frame.unused_data + bytes(self._input))
                self._frame = None
        data, self._output = bytes(self._output[:size]), self._output[size:]
        return data

    def close(self) -> None:
        self._raw.close()


class _Bzip2:
    """bzip2 streams one after the other. The library's own reader stops in silence at a damaged later one."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw, self._stream, self._started = raw, bz2.BZ2Decompressor(), False

    def read(self, size: int) -> bytes:
        while True:
            data = b""
            if self._stream.eof:
                data, self._stream, self._started = self._stream.unused_data, bz2.BZ2Decompressor(), False
            if self._stream.needs_input and not (data := data or self._raw.read(io.DEFAULT_BUFFER_SIZE)):
                if self._started:
                    raise EOFError("the last bzip2 stream ends early")
                return b""
            self._started = True
            if found := self._stream.decompress(data, size):
                return found

    def close(self) -> None:
        self._raw.close()


def iter_lines(stream: io.BufferedReader, limits: ReadLimits) -> Iterator[tuple[int, bytes | int]]:
    """(byte offset, line without its end) for every line that is not blank.

    A line longer than `max_record_bytes` comes as its length in bytes instead, and was never held whole.
    """
    offset, limit = 0, limits.max_record_bytes + 2
    while line := stream.readline(limit):
        start = offset
        offset += len(line)
        if len(line) == limit and not line.endswith(b"\n"):
            offset += skip_line(stream)
            yield start, offset - start
            continue
        stripped = line.strip()
        if stripped:
            yield start, stripped


def is_compressed(url: str) -> bool:
    """Whether the first bytes of a local file are those of gzip, zstd or bzip2."""
    with open_bytes(url) as stream:
        head = stream.read(4)
    return head[:2] == b"\x1f\x8b" or head == b"\x28\xb5\x2f\xfd" or head[1:] == b"\x2a\x4d\x18" or head[:3] == b"BZh"


def open_range(url: str, start: int, limits: ReadLimits) -> io.BufferedReader:
    """A plain file from byte `start`."""
    raw = open_bytes(url)
    raw.seek(start)
    return io.BufferedReader(BoundedReader(raw, None, limits), BUFFER)


def skip_line(stream: io.BufferedReader) -> int:
    """Read past the next line end without holding the line; returns the bytes passed."""
    passed = 0
    while chunk := stream.peek(BUFFER):
        at = chunk.find(b"\n") + 1
        passed += len(stream.read(at or len(chunk)))
        if at:
            break
    return passed
