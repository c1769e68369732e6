"""Limits that keep one hostile or broken file from eating the machine, shared by every reader."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ReadLimits:
    """What one record and one file may cost.

    max_record_bytes: decompressed bytes of one record (a line, a page, a message); a larger one is a counted drop and
        is skipped without being held in memory.
    max_file_bytes: decompressed bytes read from one file; reading stops there with a counted drop.
    max_expansion: decompressed / compressed bytes of a file; checked once more than `expansion_grace` bytes came out.
        Honest text reaches about 100 with zstd; gzip bombs sit at 1,000 (the DEFLATE maximum is 1,032).
    expansion_grace: bytes.
    max_members: files taken from one archive (EPUB, arXiv tar).
    """

    max_record_bytes: int = 32 << 20
    max_file_bytes: int = 1 << 44
    max_expansion: float = 400.0
    expansion_grace: int = 64 << 20
    max_members: int = 10_000


class BombError(ValueError):
    """A file expands beyond its limits."""


class CorruptError(ValueError):
    """A file ends early or does not decode."""


class FetchError(ValueError):
    """A URL gave no usable answer within its limits: the message says which and why."""


class TooLargeError(ValueError):
    """A file that is one record is beyond `max_record_bytes`."""
