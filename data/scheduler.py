"""Which shard is worked on when: order, retries, second copies of stragglers, progress. The same for every engine.

An engine lends `Hands`: it says how many more shards can start, starts them, and hands in answers as they come.
"""

from __future__ import annotations

import errno
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

MAX_ATTEMPTS = 3  # tries of a shard that meets an operating-system error which may pass, or kills its worker
STRAGGLER_FACTOR = 3.0  # times the median of the others: then a second copy may start
STRAGGLER_SECONDS = 10.0  # no shorter run is a straggler
CHECK_SECONDS = 1.0  # how often stragglers are looked for


class ShardError(ValueError):
    """A shard that could not be done: the message is one line naming the step, the shard and the cause.

    `errno` is the operating system's error number where there is one; `details` the traceback in the worker.
    """

    def __init__(self, message: str, *, errno: int | None = None, details: str = ""):
        super().__init__(message)
        self.errno = errno
        self.details = details


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a shard is not done. died: its process or machine ended; loading: before its model was whole."""

    line: str
    errno: int | None = None
    details: str = ""
    died: bool = False
    loading: bool = False

    @property
    def may_pass(self) -> bool:
        """Whether another try may help: not for what a person has to mend."""
        permanent = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR}
        return self.died or (self.errno is not None and self.errno not in permanent)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one start of a shard: its result, or trouble."""

    ticket: int
    result: Any = None
    trouble: Trouble | None = None


class Hands(Protocol):
    """Where shards are worked on."""

    def free(self) -> int:
        """How many more shards can start now."""
        ...

    def start(self, ticket: int, index: int) -> None:
        """Start work on the shard at this place; the answer bears the ticket."""
        ...

    def wait(self, seconds: float | None) -> Sequence[Answer]:
        """The answers that are there, waiting for the first of them; maybe none when the seconds are over."""
        ...

    def stop(self, ticket: int) -> None:
        """End this work: its answer is not wanted."""
        ...


@dataclass(slots=True)
class _Run:
    index: int
    started: float


def schedule(
    hands: Hands,
    shards: Sequence[Any],
    label: str,
    progress: Progress | None = None,
    *,
    deaths: int = MAX_ATTEMPTS,
    twice: bool = False,
) -> Iterator[tuple[int, Any]]:
    """(index, result) of every shard, as they end.

    deaths: how often a shard may kill its worker before the whole run stops. twice: a straggler is started again when
    nothing else waits, and the first whole result counts: for functions that may run beside themselves.
    Raises ShardError for a shard that stays undone.
    """
    waiting = list(range(len(shards)))[::-1]
    running: dict[int, _Run] = {}
    tries = [0] * len(shards)
    died = [0] * len(shards)
    took: list[float] = []
    left = len(shards)
    tickets = itertools.count()

    def start(index: int) -> None:
        ticket = next(tickets)
        running[ticket] = _Run(index, time.monotonic())
        hands.start(ticket, index)

    while left:
        while waiting and hands.free():
            start(waiting.pop())
        if twice and not waiting:
            for index in _stragglers(running.values(), took):
                if hands.free():
                    start(index)
        for answer in hands.wait(CHECK_SECONDS if twice and not waiting else None):
            run = running.pop(answer.ticket, None)
            if run is None:  # the other copy's answer came at the same moment
                continue
            index, trouble = run.index, answer.trouble
            if trouble is None:
                took.append(time.monotonic() - run.started)
                for ticket in [ticket for ticket, other in running.items() if other.index == index]:
                    hands.stop(ticket)
                    del running[ticket]
                left -= 1
                yield index, answer.result
                continue
            at_fault = trouble.died and not trouble.loading  # a document, perhaps: those are found by dying often
            tries[index] += not at_fault
            died[index] += at_fault
            if not trouble.may_pass or tries[index] >= MAX_ATTEMPTS or died[index] >= deaths:
                raise shard_error(label, index, shards, trouble)
            if progress is not None:
                progress.failed(index, trouble)
            if not any(other.index == index for other in running.values()):
                waiting.append(index)


def _stragglers(running: Iterable[_Run], took: Sequence[float]) -> list[int]:
    """Shards that run much longer than the others did, each once and not twice already."""
    if not took:
        return []
    running = list(running)
    indices = [run.index for run in running]
    limit = max(STRAGGLER_SECONDS, STRAGGLER_FACTOR * statistics.median(took))
    now = time.monotonic()
    return [run.index for run in running if now - run.started > limit and indices.count(run.index) == 1]


def shard_error(label: str, index: int, shards: Sequence[Any], trouble: Trouble) -> ShardError:
    """The error that names the shard."""
    line = trouble.line
    if trouble.errno in (errno.ENOSPC, errno.EDQUOT):
        line = f"the disk is full ({line}): free some space and run the same command, which goes on from here"
    shard = str(shards[index])
    shard = shard if len(shard) <= 200 else shard[:197] + "..."
    message = f"{label}: shard {index + 1} of {len(shards)} ({shard}): {line}"
    return ShardError(message, errno=trouble.errno, details=trouble.details)


class Progress:
    """A bar with rates, failures and the time left, on a terminal; failures are told once each in any case.

    documents(result) is how many documents a result stands for; the bytes are those of the files that shards name.
    """

    def __init__(self, label: str, shards: Sequence[Any], documents: Callable[[Any], int] | None = None):
        self._label, self._shards, self._documents = label, shards, documents
        self._count = self._size = self._failed = 0
        self._told: set[str] = set()
        self._started = time.monotonic()
        self._bar = tqdm(total=len(shards), desc=label, unit="shard", disable=None, dynamic_ncols=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    @property
    def num_shards(self) -> int:
        """Of the whole step."""
        return len(self._shards)

    def done(self, index: int, result: Any) -> None:
        """One shard is whole."""
        if self._documents is not None and not self._bar.disable:
            self._count += self._documents(result)
            self._size += _file_bytes(self._shards[index])
        self._show()
        self._bar.update()

    def failed(self, index: int, trouble: Trouble) -> None:
        """One try of a shard ended in trouble, and will be made again."""
        self._failed += 1
        line = f"{self._label}: shard {index + 1} of {len(self._shards)}: {trouble.line}; trying again"
        if line not in self._told:
            self._told.add(line)
            self._bar.write(line)
        self._show()

    def _show(self) -> None:
        seconds = max(time.monotonic() - self._started, 1e-9)
        parts = [f"{self._failed} failed"] if self._failed else []
        if self._documents is not None:
            rates = f"{self._count / seconds:,.0f}/s", f"{self._size / seconds / 1e6:,.1f} MB/s"
            parts += [f"{self._count:,} documents", *rates]
        self._bar.set_postfix_str(", ".join(parts), refresh=False)


def collect(results: Iterator[tuple[int, Any]], progress: Progress) -> list[Any]:
    """All results in shard order."""
    found: dict[int, Any] = {}
    for index, result in results:
        found[index] = result
        progress.done(index, result)
    return [found[index] for index in range(progress.num_shards)]


def _file_bytes(shard: Any) -> int:
    """Bytes of the file that a shard names, 0 where it names none."""
    path = next((part for part in (shard if isinstance(shard, tuple) else (shard,)) if isinstance(part, Path)), None)
    try:
        return 0 if path is None else path.stat().st_size
    except OSError:
        return 0
