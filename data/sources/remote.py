"""Remote files (`gs://`, `s3://`, `https://`, any fsspec URL): what identifies them, and their copies on this machine.

Readers need files that they can seek in and that do not stop halfway, so a remote file is fetched whole, with tries,
into $XDG_CACHE_HOME/sluice/files (~/.cache) before it is read.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from types import NoneType
from typing import Any

import fsspec
import xxhash

from data.sources.limits import FetchError

CACHE_BYTES = 200 << 30  # of copies of remote files
SILENCE_SECONDS = 30.0  # in which a web server must say something
FETCH_TRIES, RETRY_SECONDS = 3, 2.0
UNREACHABLE = "unreachable"


def is_remote(path: str) -> bool:
    """Whether fsspec, not the local file system, serves this path."""
    return "://" in path and not path.startswith("file://")


def filesystem_of(url: str) -> tuple[Any, str]:
    """(fsspec file system, path in it) of a remote URL. ValueError where its package is missing."""
    options: dict[str, Any] = {}
    if url.startswith("http"):
        from aiohttp import ClientTimeout

        options["client_kwargs"] = {"timeout": ClientTimeout(sock_connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS)}
    try:
        filesystem, inner = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise ValueError(f"{url} needs a package of its own: {error}") from error
    return filesystem, inner


def local_copy(url: str) -> str:
    """The path of a remote file's copy in the cache, fetched where it is not there. FetchError after the last try.

    A copy stays until CACHE_BYTES are full of newer ones, and is fetched again when the store's file has changed.
    """
    filesystem, inner = filesystem_of(url)
    folder = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "sluice" / "files"
    folder.mkdir(parents=True, exist_ok=True)
    error: Exception | None = None
    for attempt in range(FETCH_TRIES):
        time.sleep(attempt * RETRY_SECONDS)
        temporary = folder / f"{os.getpid()}-{threading.get_ident()}.part"
        try:
            if (content := identity(url)) == UNREACHABLE:
                raise TimeoutError("no answer")
            target = folder / xxhash.xxh3_128_hexdigest(f"{url} {content}".encode())
            if not target.exists():
                filesystem.get_file(inner, str(temporary))
                size = filesystem.size(inner)
                if size is not None and size != temporary.stat().st_size:
                    raise EOFError(f"{temporary.stat().st_size} bytes of {size}")
                temporary.rename(target)
                _make_room(folder, target)
            os.utime(target)
            return str(target)
        except Exception as caught:  # every store has its own errors for what a network does
            if _is_missing(caught):
                raise ValueError(f"input file {url!r} is gone: expected it to stay while the run goes on") from caught
            if isinstance(caught, OSError) and caught.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
                raise
            error = caught
        finally:
            temporary.unlink(missing_ok=True)
    raise FetchError(f"{url}: {type(error).__name__}: {error}, {FETCH_TRIES} times") from error


def _make_room(folder: Path, newest: Path) -> None:
    """Delete the copies used longest ago beyond CACHE_BYTES; a reader that has one open keeps it."""
    copies = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)
    total = sum(path.stat().st_size for path in copies)
    for path in copies:
        if total > CACHE_BYTES and path != newest:
            total -= path.stat().st_size
            path.unlink(missing_ok=True)


def identity(url: str) -> str:
    """The store's own checksum of a remote file, or "unreachable"; reading such a file is a counted drop."""
    filesystem, inner = filesystem_of(url)
    try:
        return str(filesystem.checksum(inner))
    except Exception as error:  # every store has its own errors for what a network does
        if _is_missing(error):
            raise ValueError(f"no input at {url!r}: expected a file") from error
        return UNREACHABLE


def remote_size(url: str) -> int:
    """Bytes of a remote file, -1 where the store does not say."""
    filesystem, inner = filesystem_of(url)
    try:
        return int(filesystem.size(inner) or -1)
    except Exception as error:  # as above
        if _is_missing(error):
            raise ValueError(f"no input at {url!r}: expected a file") from error
        return -1


def _is_missing(error: Exception) -> bool:
    """Whether a store says that there is no such file; fsspec also says so of a web server that does not answer."""
    return isinstance(error, FileNotFoundError) and isinstance(error.__cause__, FileNotFoundError | NoneType)
