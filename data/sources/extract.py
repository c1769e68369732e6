"""HTML to text with a hard limit on time and memory for each page, over many processes, in order.

    with ExtractionPool(ExtractConfig()) as pool:
        for key, result in pool.map([("a", Page(body=html, url="https://..."))]): ...

Each page goes to a worker process (`data.sources.extract_worker`) with one method of the chain. A worker that hangs,
dies or runs out of memory is replaced and the page goes on with the next method; what failed is named in the meta.
"""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from data.sources import extract_worker
from data.sources.extract_methods import FAVOUR, METHODS

VERSION = 2
CODE_MODULES = tuple(f"data.sources.{name}" for name in ("extract", "extract_methods", "extract_worker", "charset"))
LIBRARIES = ("trafilatura", "jusText", "lxml", "w3lib", "charset-normalizer")
START_SECONDS = 60.0  # a worker that has not loaded its libraries by then is broken
RECYCLE_PAGES = 5000  # pages after which a worker is replaced anyway: parsers leak

K = TypeVar("K")


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """How pages are turned into text.

    chain: methods tried in order until one gives `min_chars` characters; the longest answer wins where none does.
    favour: "precision" (fewer menus; the best F1 on the 40 real pages), "balanced", "recall": trafilatura's own switch.
    seconds: wall time of one method on one page; memory_mb: address space above the libraries' own.
    max_page_bytes: larger pages are not tried.
    """

    chain: tuple[str, ...] = METHODS
    favour: str = "precision"
    min_chars: int = 50
    seconds: float = 15.0
    memory_mb: int = 1024
    max_page_bytes: int = 8 << 20

    def __post_init__(self) -> None:
        unknown = [name for name in self.chain if name not in METHODS]
        if unknown or not self.chain:
            raise ValueError(f"chain names {unknown or 'nothing'}: expected some of {', '.join(METHODS)}")
        if self.favour not in FAVOUR:
            raise ValueError(f"favour is {self.favour!r}: expected one of {', '.join(FAVOUR)}")


@dataclass(frozen=True, slots=True)
class Page:
    """One HTML page. content_type: the HTTP header, with its charset; url: for metadata only, nothing is fetched."""

    body: bytes
    url: str = ""
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class Extracted:
    """text: "" where no method found any; meta: extractor, extractor_failed, encoding, language_hint, title, ...

    reason: why there is no text (`page_too_large`, `no_main_text`, `extractor_failed`), else "".
    """

    text: str
    meta: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


def share_of_cores(shards: int) -> int:
    """Extraction processes for one of `shards` shards: all cores where there is one shard, one each where many."""
    return max(1, len(os.sched_getaffinity(0)) // max(shards, 1))


class _Failed(Exception):
    """A method gave no reply: the message says timeout or died."""


class _Worker:
    """One replaceable process."""

    def __init__(self, config: ExtractConfig) -> None:
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._pages = 0

    def ask(self, page: Page, method: str) -> dict[str, Any]:
        """The worker's reply. _Failed when it hangs or dies; it is then replaced at the next page."""
        process = self._process or self._start()
        self._pages += 1
        request = {
            "method": method,
            "url": page.url,
            "content_type": page.content_type,
            "favour": self._config.favour,
        }
        deadline = time.monotonic() + self._config.seconds
        try:
            assert process.stdin is not None
            extract_worker.write_frame(process.stdin, json.dumps(request).encode())
            extract_worker.write_frame(process.stdin, page.body)
            reply: dict[str, Any] = json.loads(self._frame(deadline))
        except BrokenPipeError as error:
            self.stop()
            raise _Failed("worker died") from error
        except _Failed:
            self.stop()
            raise
        if reply.get("error") == "out_of_memory" or self._pages >= RECYCLE_PAGES:
            self.stop()
        return reply

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": extract_worker.root(), "MALLOC_ARENA_MAX": "2"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "data.sources.extract_worker", str(self._config.memory_mb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self._pages = 0
        try:
            self._frame(time.monotonic() + START_SECONDS)
        except _Failed as error:
            self.stop()
            command = f"{sys.executable} -m data.sources.extract_worker {self._config.memory_mb}"
            raise ValueError(f"the extraction worker does not start ({error}): run `{command}` to see why") from error
        return self._process

    def _frame(self, deadline: float) -> bytes:
        head = self._read(4, deadline)
        return self._read(int.from_bytes(head, "big"), deadline)

    def _read(self, size: int, deadline: float) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        descriptor, parts = self._process.stdout.fileno(), bytearray()
        while len(parts) < size:
            ready, _, _ = select.select([descriptor], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                raise _Failed(f"timeout {self._config.seconds:g} s")
            data = os.read(descriptor, size - len(parts))
            if not data:
                raise _Failed("worker died")
            parts += data
        return bytes(parts)

    def stop(self) -> None:
        """Kill the process; the next page starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for stream in (process.stdin, process.stdout):
            try:
                if stream is not None:
                    stream.close()
            except OSError:
                continue
        process.wait()


class ExtractionPool(Generic[K]):
    """Worker processes that turn pages into text; results come in the order of the pages.

    workers: processes. It changes speed only, never a result, so it is no part of `ExtractConfig`.
    """

    def __init__(self, config: ExtractConfig, *, workers: int = 1) -> None:
        self._config, self._workers = config, max(workers, 1)
        self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="extract")
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all = [_Worker(config) for _ in range(self._workers)]
        for worker in self._all:
            self._idle.put(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._all:
            worker.stop()

    def map(self, pages: Iterable[tuple[K, Page | Extracted]]) -> Iterator[tuple[K, Extracted]]:
        """(key, result) in the order given; at most four pages a worker are read ahead.

        An item that is `Extracted` already passes through, so that a caller's own drops keep their place.
        """
        waiting: deque[tuple[K, Future[Extracted] | Extracted]] = deque()
        for key, page in pages:
            waiting.append((key, page if isinstance(page, Extracted) else self._threads.submit(self.extract, page)))
            while len(waiting) > 4 * self._workers:
                first, result = waiting.popleft()
                yield first, result.result() if isinstance(result, Future) else result
        for first, result in waiting:
            yield first, result.result() if isinstance(result, Future) else result

    def extract(self, page: Page) -> Extracted:
        """One page through the chain."""
        if len(page.body) > self._config.max_page_bytes:
            return Extracted("", {"page_bytes": len(page.body)}, "page_too_large")
        worker = self._idle.get()
        try:
            return self._chain(worker, page)
        finally:
            self._idle.put(worker)

    def _chain(self, worker: _Worker, page: Page) -> Extracted:
        failed: list[str] = []
        best = Extracted("")
        for method in self._config.chain:
            try:
                reply = worker.ask(page, method)
            except _Failed as error:
                failed.append(f"{method}: {error}")
                continue
            if "error" in reply:
                failed.append(f"{method}: {reply['error']}")
                continue
            text, meta = str(reply["text"]), {**reply["meta"], "extractor": method}
            if len(text) > len(best.text) or not best.meta:
                best = Extracted(text, {**best.meta, **meta})
            if len(text) >= self._config.min_chars:
                break
            failed.append(f"{method}: {len(text)} characters")
        meta = {**best.meta, **({"extractor_failed": failed} if failed else {})}
        if best.text:
            return Extracted(best.text, meta)
        return Extracted("", meta, "no_main_text" if best.meta else "extractor_failed")
