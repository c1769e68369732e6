"""One bounded HTTP GET: retries, an overall deadline, a byte limit, a pace that all workers keep together."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import urllib3

from data.sources.limits import FetchError
from data.stage import NOT_IN_KEY
from data.worker import num_workers

RETRY_STATUSES = (429, 500, 502, 503, 504)
_NEXT: dict[str, float] = {}  # of this process: when each host may be asked again, on the monotonic clock
_TURN = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class HttpLimits:
    """What one request may cost.

    connect_seconds, read_seconds: for one attempt; total_seconds: for the whole body, so that a server that drips one
    byte at a time ends too. retries wait 1, 2, 4, ... seconds times `backoff`, or what Retry-After asks for, at most
    total_seconds. requests_per_second: to one host, of all workers of the engine together: each keeps its part.
    """

    connect_seconds: float = 10.0
    read_seconds: float = 30.0
    total_seconds: float = 120.0
    retries: int = 5
    backoff: float = 1.0
    max_redirects: int = 5
    max_bytes: int = 64 << 20
    requests_per_second: float = field(default=10.0, metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        if self.requests_per_second <= 0:
            raise ValueError(f"http.requests_per_second must be positive, got {self.requests_per_second}")


class _Retry(urllib3.Retry):
    """Retries that wait no longer than `most_seconds`, whatever Retry-After says."""

    most_seconds = 0.0

    def new(self, **changes: Any) -> _Retry:
        """The next state, which urllib3 makes for each try."""
        found = super().new(**changes)
        found.most_seconds = self.most_seconds
        return found

    def get_retry_after(self, response: urllib3.BaseHTTPResponse) -> float | None:
        """Seconds to wait, None where the server does not say."""
        asked = super().get_retry_after(response)
        return None if asked is None else min(asked, self.most_seconds)


class HttpClient:
    """GETs with one identity and one set of limits; connections are kept open."""

    def __init__(self, user_agent: str, limits: HttpLimits) -> None:
        retry = _Retry(
            total=limits.retries,
            redirect=limits.max_redirects,
            backoff_factor=limits.backoff,
            status_forcelist=RETRY_STATUSES,
            raise_on_status=False,
        )
        retry.most_seconds = limits.total_seconds
        timeout = urllib3.Timeout(connect=limits.connect_seconds, read=limits.read_seconds)
        self._limits = limits
        self._pool = urllib3.PoolManager(headers={"User-Agent": user_agent}, retries=retry, timeout=timeout)

    def get(self, url: str, *, start: int | None = None, length: int | None = None) -> bytes:
        """The body, or its bytes [start, start + length). FetchError with one line for everything else."""
        headers = {} if start is None or length is None else {"Range": f"bytes={start}-{start + length - 1}"}
        wanted = self._limits.max_bytes if length is None else min(length, self._limits.max_bytes)
        expected = 206 if headers else 200
        wait_turn(urlsplit(url).netloc, num_workers() / self._limits.requests_per_second)
        deadline = time.monotonic() + self._limits.total_seconds
        try:
            answer = self._pool.request("GET", url, headers={**self._pool.headers, **headers}, preload_content=False)
        except urllib3.exceptions.HTTPError as error:
            raise FetchError(f"{url}: {type(error).__name__}: {error}") from error
        try:
            if answer.status != expected:
                raise FetchError(f"{url}: HTTP {answer.status}, expected {expected}")
            return self._body(answer, url, wanted, deadline, exact=length is not None)
        finally:
            answer.close()

    def _body(self, answer: urllib3.BaseHTTPResponse, url: str, wanted: int, deadline: float, *, exact: bool) -> bytes:
        parts, size = [], 0
        try:
            while data := answer.read1(1 << 16, decode_content=True):
                parts.append(data)
                size += len(data)
                if size > wanted:
                    raise FetchError(f"{url}: more than {wanted} bytes")
                if time.monotonic() > deadline:
                    raise FetchError(f"{url}: not whole after {self._limits.total_seconds:g} s")
        except urllib3.exceptions.HTTPError as error:
            raise FetchError(f"{url}: {type(error).__name__}: {error}") from error
        if exact and size != wanted:
            raise FetchError(f"{url}: {size} bytes, expected {wanted}")
        return b"".join(parts)


def wait_turn(host: str, pause: float) -> None:
    """Wait until this process may ask a host again; it then waits `pause` seconds for its next turn."""
    with _TURN:
        turn = max(time.monotonic(), _NEXT.get(host, 0.0))
        _NEXT[host] = turn + pause
    time.sleep(max(turn - time.monotonic(), 0.0))
