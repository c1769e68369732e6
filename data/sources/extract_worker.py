"""The process that extracts pages, so that a page can be stopped: `python -m data.sources.extract_worker MEMORY_MB`.

Frames on stdin and stdout: 4 bytes big-endian length, then the bytes. A request is a JSON frame and a body frame; a
reply is one JSON frame, {"text", "meta"} or {"error"}. Nothing is pickled. The parent kills this process when a page
takes too long (`data.sources.extract`); the address space is limited here.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
from pathlib import Path
from typing import IO

from data.sources.extract_methods import extract_page

RESET_PAGES = 200  # pages between clearings of trafilatura's caches, which only grow
BASELINE_MB = 512  # MB of address space taken before any page, where the system does not tell


def read_frame(stream: IO[bytes]) -> bytes | None:
    """One frame, or None at the end."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    (size,) = struct.unpack(">I", head)
    return stream.read(size)


def write_frame(stream: IO[bytes], data: bytes) -> None:
    """Write one frame and flush."""
    stream.write(struct.pack(">I", len(data)) + data)
    stream.flush()


def main() -> None:
    """Answer pages until stdin closes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not land among the frames
    requests, pages = sys.stdin.buffer, 0
    import charset_normalizer  # noqa: F401  all are loaded before the first page's clock starts
    import justext  # noqa: F401
    import trafilatura
    from trafilatura.meta import reset_caches

    limit = address_space() + (int(sys.argv[1]) << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    write_frame(replies, trafilatura.__version__.encode())
    while (head := read_frame(requests)) is not None:
        request, body = json.loads(head), read_frame(requests) or b""
        try:
            reply = extract_page(body, request["content_type"], request["url"], request["method"], request["favour"])
        except MemoryError:
            reply = {"error": "out_of_memory"}
        except Exception as error:  # a page may break a parser in any way; the chain goes on
            reply = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
        write_frame(replies, json.dumps(reply).encode())
        pages += 1
        if pages % RESET_PAGES == 0:
            reset_caches()


def address_space() -> int:
    """Bytes of address space that this process has now."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return BASELINE_MB << 20


def root() -> str:
    """The folder that holds the package `data`, for the child's module path."""
    return str(Path(__file__).resolve().parents[2])


if __name__ == "__main__":
    main()
