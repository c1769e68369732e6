"""Records that belong together though they lie far apart in a file: threads, questions with their answers.

A temporary SQLite file holds what memory must not: a Stack Overflow dump has 60 million posts, and an answer may come
years after its question.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import zstandard

from data.sources.limits import BombError, CorruptError

CACHE_KIB = 64 << 10  # SQLite page cache
BATCH_ROWS = 2000  # rows inserted at once


class HeldFault:
    """Holds back the fault that ends a file until the groups of the records in front of it are out.

    with HeldFault() as fault: ... read and put ...
    ... yield the groups ...
    fault.give()
    """

    _error: Exception | None = None

    def __enter__(self) -> HeldFault:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, CorruptError | BombError):
            self._error = error
        return self._error is not None

    def give(self) -> None:
        """Raise the fault, where there was one."""
        if self._error is not None:
            raise self._error


class Groups:
    """Records by group: put them in file order, take the groups out in the order in which they were first seen.

    folder: where the temporary file goes; about as large as the input. A context manager; the file is gone at its end.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="sluice-groups-", dir=folder)
        self._database = sqlite3.connect(Path(self._folder.name) / "groups.sqlite", isolation_level=None)
        for statement in (
            "PRAGMA journal_mode=OFF",
            "PRAGMA synchronous=OFF",
            f"PRAGMA cache_size=-{CACHE_KIB}",
            "CREATE TABLE records (number INTEGER PRIMARY KEY, grp TEXT NOT NULL, record BLOB NOT NULL)",
            "BEGIN",
        ):
            self._database.execute(statement)
        self._pack, self._unpack = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()
        self._waiting: list[tuple[str, bytes]] = []

    def __enter__(self) -> Groups:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()
        self._folder.cleanup()

    def put(self, group: str, record: dict[str, Any]) -> None:
        """Keep one JSON record under its group."""
        data = self._pack.compress(json.dumps(record).encode())
        self._waiting.append((group.encode("utf-8", "replace").decode(), data))
        if len(self._waiting) >= BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._database.executemany("INSERT INTO records (grp, record) VALUES (?, ?)", self._waiting)
        self._waiting.clear()

    def merge(self, moved: Iterable[tuple[str, str]]) -> None:
        """(group, the group it turned out to be part of): its records count to that one. Once all are put."""
        self._flush()
        self._database.execute("CREATE INDEX IF NOT EXISTS by_group ON records (grp, number)")
        named = ((*(name.encode("utf-8", "replace").decode() for name in pair),) for pair in moved)
        self._database.executemany("UPDATE records SET grp = ?2 WHERE grp = ?1", named)

    def groups(self, limit: int) -> Iterator[tuple[str, list[dict[str, Any]], int]]:
        """(group, its first `limit` records in file order, how many there are in all), groups by first appearance."""
        self._flush()
        self._database.execute("CREATE INDEX IF NOT EXISTS by_group ON records (grp, number)")
        self._database.execute(
            "CREATE TABLE firsts AS SELECT MIN(number) AS first, grp, COUNT(*) AS n FROM records GROUP BY grp"
        )
        query = "SELECT grp, n FROM firsts ORDER BY first"
        for group, count in self._database.execute(query):
            rows = self._database.execute(
                "SELECT record FROM records WHERE grp = ? ORDER BY number LIMIT ?", (group, limit)
            )
            yield group, [json.loads(self._unpack.decompress(row[0])) for row in rows], count
