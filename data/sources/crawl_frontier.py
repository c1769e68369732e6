"""The frontier: which URLs were found, are being fetched, and are done; a SQLite file that survives SIGKILL.

A page is done in the same transaction that records how long the WARC file is with it. After a kill, pages that were in
flight are queued again and the WARC file is cut back to its recorded length, so no page is missed or stored twice.
Links to hosts that another share of the crawl owns wait in `outbox`, committed with the page that they stand on. When
each host was last asked, and the pause that it wants, are kept too: a new process waits as long as the old one would.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data.sources.crawl_urls import MAX_CALENDAR_PER_HOST, MAX_QUERIES_PER_PATH, host_of, is_calendar

QUEUED, IN_FLIGHT, DONE, FAILED = 0, 1, 2, 3
SCHEMA = """
CREATE TABLE IF NOT EXISTS urls (
    id INTEGER PRIMARY KEY, url TEXT UNIQUE NOT NULL, host TEXT NOT NULL, kind TEXT NOT NULL, depth INTEGER NOT NULL,
    redirects INTEGER NOT NULL DEFAULT 0, state INTEGER NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0,
    reason TEXT, bytes INTEGER
);
CREATE INDEX IF NOT EXISTS by_turn ON urls (state, host, kind='page', attempts, id);
CREATE TABLE IF NOT EXISTS traps (path TEXT PRIMARY KEY, number INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS refused (reason TEXT PRIMARY KEY, number INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS outbox (
    url TEXT PRIMARY KEY, kind TEXT NOT NULL, depth INTEGER NOT NULL, redirects INTEGER NOT NULL,
    sent INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS hosts (host TEXT PRIMARY KEY, last REAL NOT NULL DEFAULT 0, pause REAL NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS archive (file TEXT PRIMARY KEY, bytes INTEGER NOT NULL);
"""


# Hosts that have something queued, one step in the index each: a scan of the whole queue would slow down as it grows.
HOSTS = """
WITH RECURSIVE found(host) AS (
    SELECT MIN(host) FROM urls WHERE state=:state
    UNION ALL SELECT (SELECT MIN(host) FROM urls WHERE state=:state AND host>found.host) FROM found WHERE host NOT NULL
) SELECT host FROM found WHERE host NOT NULL
"""


@dataclass(frozen=True, slots=True)
class Task:
    """One URL to fetch. kind: page, sitemap, feed or robots; redirects: how many led here."""

    url: str
    kind: str
    depth: int
    redirects: int
    attempts: int


class Frontier:
    """The crawl's memory. One process at a time.

    owns: whether a host is this share's. pause: seconds between requests to a host, where it wants no more.
    """

    def __init__(self, path: Path, *, owns: Callable[[str], bool] = lambda host: True, pause: float = 0.0) -> None:
        self._owns = owns
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, isolation_level=None, timeout=1.0)
            self._database.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.executescript(SCHEMA)
            self._database.execute(  # a kill is not the page's fault: that try does not count
                "UPDATE urls SET state=?, attempts=MAX(attempts-1, 0) WHERE state=?", (QUEUED, IN_FLIGHT)
            )
        except (sqlite3.Error, OSError) as error:
            if "locked" in str(error):
                raise ValueError(f"{path} is in use: another crawl runs in this folder ({error})") from error
            raise ValueError(f"folder {str(path.parent)!r} cannot be used: {path.name}: {error}") from error
        self._in_flight: dict[str, int] = {}
        self._order: list[str] = []
        asked = self._database.execute("SELECT host, last, pause FROM hosts")
        self._rests = {host: last + max(pause, asks) for host, last, asks in asked}  # until when, from before

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def add(self, url: str, *, kind: str = "page", depth: int = 0, redirects: int = 0) -> bool:
        """Queue a URL that was never seen; False where it was, its path has too many variants, or another owns it."""
        if not self._owns(host_of(url)):
            self._database.execute(
                "INSERT OR IGNORE INTO outbox (url, kind, depth, redirects) VALUES (?, ?, ?, ?)",
                (url, kind, depth, redirects),
            )
            return False
        if self._database.execute("SELECT 1 FROM urls WHERE url=?", (url,)).fetchone():
            return False
        reason = self._trap(url) if kind == "page" else None
        if reason is not None:
            self.refuse(reason)
            return False
        self._database.execute(
            "INSERT INTO urls (url, host, kind, depth, redirects) VALUES (?, ?, ?, ?, ?)",
            (url, host_of(url), kind, depth, redirects),
        )
        return True

    def add_all(self, items: Iterable[dict[str, Any]]) -> None:
        """Queue URLs, given as arguments of `add`, in one transaction."""
        self._database.execute("BEGIN")
        for item in items:
            self.add(**item)
        self._database.execute("COMMIT")

    def _trap(self, url: str) -> str | None:
        parts = urlsplit(url)
        checks = []
        if parts.query:
            checks.append((f"{parts.netloc}{parts.path}?", MAX_QUERIES_PER_PATH, "too_many_queries"))
        if is_calendar(url):
            checks.append((f"{parts.netloc} calendar", MAX_CALENDAR_PER_HOST, "calendar"))
        for path, limit, reason in checks:
            self._database.execute(
                "INSERT INTO traps VALUES (?, 1) ON CONFLICT(path) DO UPDATE SET number=number+1", (path,)
            )
            (number,) = self._database.execute("SELECT number FROM traps WHERE path=?", (path,)).fetchone()
            if number > limit:
                return reason
        return None

    def refuse(self, reason: str) -> None:
        """Count a URL that is not followed."""
        self._database.execute(
            "INSERT INTO refused VALUES (?, 1) ON CONFLICT(reason) DO UPDATE SET number=number+1", (reason,)
        )

    def take(self, per_host: int) -> Task | None:
        """The next URL, hosts in turn, at most `per_host` of one host in flight; None where nothing may start now."""
        if not self._order:
            self._order = [row[0] for row in self._database.execute(HOSTS, {"state": QUEUED})]
        for _ in range(len(self._order)):
            host = self._order.pop(0)
            if self._in_flight.get(host, 0) >= per_host or self._rests.get(host, 0.0) > time.time():
                continue
            row = self._database.execute(
                "SELECT url, kind, depth, redirects, attempts FROM urls WHERE state=? AND host=?"
                " ORDER BY kind='page', attempts, id LIMIT 1",
                (QUEUED, host),
            ).fetchone()
            if row is None:
                continue
            self._database.execute("UPDATE urls SET state=?, attempts=attempts+1 WHERE url=?", (IN_FLIGHT, row[0]))
            self._in_flight[host] = self._in_flight.get(host, 0) + 1
            self._rests.pop(host, None)  # from here on Scrapy keeps the pause
            return Task(*row)
        return None

    def _landed(self, url: str) -> None:
        host = host_of(url)
        self._in_flight[host] = max(self._in_flight.get(host, 1) - 1, 0)
        self._database.execute(
            "INSERT INTO hosts (host, last) VALUES (?, ?) ON CONFLICT(host) DO UPDATE SET last=excluded.last",
            (host, time.time()),
        )

    def set_pause(self, host: str, seconds: float) -> None:
        """Keep the pause between requests that a host asks for."""
        self._database.execute(
            "INSERT INTO hosts (host, pause) VALUES (?, ?) ON CONFLICT(host) DO UPDATE SET pause=excluded.pause",
            (host, seconds),
        )

    def unsent(self) -> list[dict[str, Any]]:
        """Links for other shares that were not handed over, as arguments of `add`."""
        rows = self._database.execute("SELECT url, kind, depth, redirects FROM outbox WHERE sent=0 ORDER BY rowid")
        return [dict(zip(("url", "kind", "depth", "redirects"), row)) for row in rows]

    def mark_sent(self, urls: list[str]) -> None:
        """These links were handed over."""
        self._database.execute("BEGIN")
        self._database.executemany("UPDATE outbox SET sent=1 WHERE url=?", [(url,) for url in urls])
        self._database.execute("COMMIT")

    def done(
        self, url: str, size: int, file: str, file_bytes: int, found: list[dict[str, Any]], reason: str = ""
    ) -> None:
        """A page whose WARC record is whole: its state, the file's length and its links, in one transaction."""
        self._database.execute("BEGIN")
        self._database.execute("UPDATE urls SET state=?, bytes=?, reason=? WHERE url=?", (DONE, size, reason, url))
        self._database.execute("INSERT OR REPLACE INTO archive VALUES (?, ?)", (file, file_bytes))
        for item in found:
            self.add(**item)
        self._landed(url)
        self._database.execute("COMMIT")

    def failed(self, url: str, reason: str, *, retries: int) -> None:
        """A page that did not come: queued again while tries are left, else failed with its reason."""
        row = self._database.execute("SELECT attempts FROM urls WHERE url=?", (url,)).fetchone()
        again = row is not None and row[0] <= retries
        state = QUEUED if again else FAILED
        self._database.execute("UPDATE urls SET state=?, reason=? WHERE url=?", (state, reason, url))
        self._landed(url)

    def archive(self) -> tuple[str, int] | None:
        """(newest WARC file, its recorded bytes), or None before the first page."""
        row = self._database.execute("SELECT file, bytes FROM archive ORDER BY file DESC LIMIT 1").fetchone()
        return (str(row[0]), int(row[1])) if row else None

    def is_new(self) -> bool:
        """Whether no URL was ever found."""
        return self._database.execute("SELECT 1 FROM urls LIMIT 1").fetchone() is None

    def has_queued(self) -> bool:
        """Whether any URL waits."""
        return self._database.execute("SELECT 1 FROM urls WHERE state=? LIMIT 1", (QUEUED,)).fetchone() is not None

    def counts(self) -> dict[str, int]:
        """pages, bytes (both done), queued, failed."""
        row = self._database.execute(
            "SELECT SUM(state=2 AND kind='page'), COALESCE(SUM(CASE WHEN state=2 THEN bytes END), 0),"
            " SUM(state IN (0, 1)), SUM(state=3) FROM urls"
        ).fetchone()
        return dict(zip(("pages", "bytes", "queued", "failed"), (int(value or 0) for value in row)))

    def reasons(self) -> dict[str, int]:
        """How often each reason kept a URL from being fetched or stored."""
        rows = self._database.execute(
            "SELECT reason, number FROM refused"
            " UNION ALL SELECT reason, COUNT(*) FROM urls WHERE state=3 GROUP BY reason"
        )
        counts: dict[str, int] = {}
        for reason, number in rows:
            counts[reason] = counts.get(reason, 0) + number
        return counts
