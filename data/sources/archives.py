"""Members of tar archives, one after the other, within limits; nothing is written to disk and no link is followed."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple, NoReturn

from xxhash import xxh64_intdigest

from data.sources.limits import BombError, CorruptError

BLOCK = 512  # bytes of a tar header
TAR_MAGIC_AT = 257
MAX_EMPTY_READS = 100
MAX_NAME_BYTES = 1 << 20  # of a header that holds a long name or extended attributes: tarfile reads those whole


class PathError(ValueError):
    """A name in an archive leads out of it."""


class Member(NamedTuple):
    """One entry. size: bytes; read: its bytes, before the next.

    fault: "", "link_in_archive", "path_climbs_out" or "repeated_name".
    """

    name: str
    fault: str
    size: int
    read: Callable[[], bytes]


class _BoundedInfo(tarfile.TarInfo):
    """Headers whose size does not bound what tarfile keeps of them are refused."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        kinds = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, *tarfile.GNU_TYPES[:2])
        if self.type in kinds and self.size > MAX_NAME_BYTES:
            raise tarfile.HeaderError(f"a header of {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc,no-any-return]

    def _proc_sparse(self, *_: Any) -> NoReturn:
        raise tarfile.HeaderError("sparse files are not read")

    _proc_gnusparse_10 = _proc_sparse


class _Ending:
    """A stream whose end is seen: tarfile goes on behind it, as far as a header says, in steps of 10 KiB."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._empty = stream, 0

    def read(self, size: int) -> bytes:
        data: bytes = self._stream.read(size)
        self._empty += not data
        if self._empty > MAX_EMPTY_READS:
            raise EOFError("a member goes on behind the end of the archive")
        return data


def is_tar(head: bytes) -> bool:
    """Whether 512 bytes are a tar header."""
    return head[TAR_MAGIC_AT : TAR_MAGIC_AT + 5] == b"ustar"


def safe_name(name: str) -> str:
    """A member's name as a relative path. PathError where it climbs out."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise PathError(name)
    return path.as_posix()


def tar_members(stream: Any, max_members: int) -> Iterator[Member]:
    """Files and links of a tar stream. BombError beyond `max_members`, CorruptError where it ends early."""
    names: set[int] = set()  # their hashes: an archive may hold millions
    try:
        with tarfile.open(fileobj=_Ending(stream), mode="r|", tarinfo=_BoundedInfo) as archive:  # type: ignore[call-overload]
            for count, info in enumerate(archive):
                archive.members = []  # type: ignore[attr-defined]  # which tarfile would keep to the end
                if count >= max_members:
                    raise BombError(f"more than {max_members} members")
                name_hash = xxh64_intdigest(info.name.encode("utf-8", "surrogatepass"))
                if (info.isfile() or info.issym() or info.islnk()) and name_hash in names:
                    yield Member(info.name, "repeated_name", 0, bytes)
                    continue
                names.add(name_hash)
                if info.issym() or info.islnk():
                    yield Member(info.name, "link_in_archive", 0, bytes)
                elif info.isfile():
                    yield _file(archive, info)
    except (tarfile.TarError, EOFError) as error:
        raise CorruptError(str(error)) from error


def _file(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    def read() -> bytes:
        try:
            opened = archive.extractfile(info)
            return opened.read() if opened is not None else b""
        except (tarfile.TarError, EOFError) as error:
            raise CorruptError(str(error)) from error

    try:
        return Member(safe_name(info.name), "", info.size, read)
    except PathError:
        return Member(info.name, "path_climbs_out", info.size, read)
