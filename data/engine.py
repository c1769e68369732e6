"""Engines run a function over shards: a local process pool here, a cluster in a module of its own.

Output bytes never depend on the engine or on the number of workers: a shard's function writes its own files and
returns a small JSON-able result, and results come back in shard order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from data.pool import Inline, Spread, Worker, pickled_function, with_model
from data.scheduler import MAX_ATTEMPTS, Progress, ShardError, collect, schedule

__all__ = ["MAX_ATTEMPTS", "Engine", "LocalPool", "ShardError"]

S = TypeVar("S")
R = TypeVar("R")
M = TypeVar("M")


class Engine(Protocol):
    """Where stages run."""

    def map_shards(
        self,
        fn: Callable[[S], R],
        shards: Sequence[S],
        *,
        label: str,
        documents: Callable[[R], int] | None = None,
        deaths: int = MAX_ATTEMPTS,
        twice: bool = False,
    ) -> list[R]:
        """fn(shard) for every shard, results in shard order; a barrier. fn and shards must pickle (spawned workers).

        label names the step on the progress bar and in errors; documents(result) is how many documents a result
        stands for, shown as a rate. deaths: how often one shard may kill its worker before the run stops. twice: fn
        may run on one shard in two places at once, so that a straggler can be started again elsewhere.
        """
        ...

    def map_with(
        self,
        build: Callable[[], M],
        fn: Callable[[S, M], R],
        shards: Sequence[S],
        *,
        label: str,
        documents: Callable[[R], int] | None = None,
        deaths: int = MAX_ATTEMPTS,
    ) -> list[R]:
        """As `map_shards` with fn(shard, model): for what needs a model, which build() makes once wherever it runs.

        Here the model is in this process and shards go through it one after the other; a cluster has one model for
        each accelerator.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class LocalPool:
    """Worker processes on this machine.

    workers: how many; None for one a usable CPU. 1 runs in this process. Never changes what is written.

    A function must live in an importable module (workers are fresh interpreters). A worker that is killed (out of
    memory, say) is noticed and its shard tried again, as is a shard that met an operating-system error other than a
    full disk; after `MAX_ATTEMPTS`, or at once for any other error, `ShardError` names the shard.
    """

    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"LocalPool: workers must be at least 1 or None (one a CPU), got {self.workers}")

    @property
    def num_workers(self) -> int:
        """Processes that a call uses at most."""
        return self.workers or len(os.sched_getaffinity(0))

    def map_shards(self, fn: Callable[[S], R], shards: Sequence[S], **options: Any) -> list[R]:
        """As `Engine.map_shards`, with workers for this call alone."""
        with self.session() as engine:
            return engine.map_shards(fn, shards, **options)

    def map_with(self, build: Callable[[], M], fn: Callable[[S, M], R], shards: Sequence[S], **options: Any) -> list[R]:
        """As `Engine.map_with`."""
        with self.session() as engine:
            return engine.map_with(build, fn, shards, **options)

    @contextmanager
    def session(self, folder: Path | None = None, libraries: Sequence[str] = ()) -> Iterator[Engine]:
        """An engine whose workers stay alive between calls; they end with the block.

        folder: of the dataset, libraries: that shape its bytes; a cluster looks whether its machines have both.
        """
        pool = _Pool(self.num_workers)
        try:
            yield pool
        finally:
            pool.close()


class _Pool:
    """The live workers of one session: started when first needed, at most one a shard."""

    def __init__(self, num_workers: int):
        self._num_workers = num_workers
        self._workers: list[Worker] = []

    def map_shards(
        self,
        fn: Callable[[S], R],
        shards: Sequence[S],
        *,
        label: str,
        documents: Callable[[R], int] | None = None,
        deaths: int = MAX_ATTEMPTS,
        twice: bool = False,
    ) -> list[R]:
        shards = list(shards)
        count = min(self._num_workers, len(shards))
        with Progress(label, shards, documents) as progress:
            if count <= 1:
                return collect(schedule(Inline(fn, shards), shards, label, progress), progress)
            try:
                hands = Spread(self._workers, count, pickled_function(fn, label), shards)
                return collect(schedule(hands, shards, label, progress, deaths=deaths, twice=twice), progress)
            except BaseException:
                self.close()  # the others' results are not wanted any more
                raise

    def map_with(
        self,
        build: Callable[[], M],
        fn: Callable[[S, M], R],
        shards: Sequence[S],
        *,
        label: str,
        documents: Callable[[R], int] | None = None,
        deaths: int = MAX_ATTEMPTS,
    ) -> list[R]:
        shards = list(shards)
        hands = Inline(partial(with_model, fn=fn, model=cache(build)), shards)
        with Progress(label, shards, documents) as progress:
            return collect(schedule(hands, shards, label, progress, deaths=deaths), progress)

    def close(self) -> None:
        """End all workers at once, whatever they do."""
        for worker in self._workers:
            worker.process.kill()
            worker.connection.close()
        for worker in self._workers:
            worker.process.wait()
        self._workers.clear()
