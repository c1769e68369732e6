"""Engines run a function over shards: a local process pool here, a cluster in a module of its own.

Output bytes never depend on the engine or on the number of workers: a shard's function writes its own files and
returns a small JSON-able result, and results come back in shard order.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol, TypeVar

from data.scheduler import MAX_ATTEMPTS, Answer, ShardError, Trouble, collect, schedule
from data.worker import failure

__all__ = ["MAX_ATTEMPTS", "Engine", "LocalPool", "ShardError"]

S = TypeVar("S")
R = TypeVar("R")
M = TypeVar("M")

_WORKER = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from data.worker import main; main(%d, %d)"


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
    def session(self, folder: Path | None = None) -> Iterator[Engine]:
        """An engine whose workers stay alive between calls; they end with the block.

        folder: of the dataset, which a cluster's machines must all see.
        """
        pool = _Pool(self.num_workers)
        try:
            yield pool
        finally:
            pool.close()


@dataclass(eq=False)
class _Worker:
    """One worker process, the pipe to it, the function it holds and the ticket it works on."""

    process: subprocess.Popen
    connection: Connection
    function: bytes | None = None
    ticket: int | None = None


class _Pool:
    """The live workers of one session: started when first needed, at most one a shard."""

    def __init__(self, num_workers: int):
        self._num_workers = num_workers
        self._workers: list[_Worker] = []

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
        if min(self._num_workers, len(shards)) <= 1:
            return collect(schedule(_Inline(fn, shards), shards, label), shards, label, documents)
        hands = _Spread(self._workers, min(self._num_workers, len(shards)), _pickled_function(fn, label), shards)
        try:
            return collect(schedule(hands, shards, label, deaths=deaths, twice=twice), shards, label, documents)
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
    ) -> list[R]:
        shards = list(shards)
        hands = _Inline(partial(_with_model, fn=fn, model=cache(build)), shards)
        return collect(schedule(hands, shards, label), shards, label, documents)

    def close(self) -> None:
        """End all workers at once, whatever they do."""
        for worker in self._workers:
            worker.process.kill()
            worker.connection.close()
        for worker in self._workers:
            worker.process.wait()
        self._workers.clear()


def _with_model(shard: Any, *, fn: Callable[[Any, Any], Any], model: Callable[[], Any]) -> Any:
    return fn(shard, model())  # not before the first shard: there may be none


class _Inline:
    """Hands of this process: one shard at a time, done when it is waited for."""

    def __init__(self, fn: Callable[[Any], Any], shards: Sequence[Any]):
        self._fn, self._shards = fn, shards
        self._next: tuple[int, int] | None = None

    def free(self) -> int:
        return int(self._next is None)

    def start(self, ticket: int, index: int) -> None:
        self._next = ticket, index

    def wait(self, seconds: float | None) -> Sequence[Answer]:
        assert self._next is not None
        (ticket, index), self._next = self._next, None
        try:
            return [Answer(ticket, self._fn(self._shards[index]))]
        except Exception as error:
            return [Answer(ticket, trouble=Trouble(*failure(error)))]

    def stop(self, ticket: int) -> None:
        self._next = None


class _Spread:
    """Hands of worker processes; a dead one is replaced."""

    def __init__(self, workers: list[_Worker], count: int, function: bytes, shards: Sequence[Any]):
        self._workers, self._function, self._shards = workers, function, shards
        while len(workers) < count:
            workers.append(_start())

    def free(self) -> int:
        return sum(worker.ticket is None for worker in self._workers)

    def start(self, ticket: int, index: int) -> None:
        worker = next(worker for worker in self._workers if worker.ticket is None)
        worker.ticket = ticket
        _send(worker, self._function, pickle.dumps(self._shards[index]))

    def wait(self, seconds: float | None) -> Sequence[Answer]:
        busy = {worker.connection: worker for worker in self._workers if worker.ticket is not None}
        ready = wait(list(busy), timeout=seconds)
        return [self._receive(busy[connection]) for connection in ready if isinstance(connection, Connection)]

    def stop(self, ticket: int) -> None:
        worker = next((worker for worker in self._workers if worker.ticket == ticket), None)
        if worker is not None:  # else its answer is in the same batch as the one that won
            self._replace(worker)

    def _receive(self, worker: _Worker) -> Answer:
        assert worker.ticket is not None
        ticket = worker.ticket
        try:
            result, trouble = worker.connection.recv()
            worker.ticket = None
            return (
                Answer(ticket, pickle.loads(result)) if trouble is None else Answer(ticket, trouble=Trouble(*trouble))
            )
        except (EOFError, OSError):
            code = self._replace(worker)
            how = f"killed by {signal.Signals(-code).name} (out of memory?)" if code < 0 else f"ended with code {code}"
            return Answer(ticket, trouble=Trouble(f"the worker was {how} each time it was tried", died=True))
        return Answer(ticket, pickle.loads(result)) if trouble is None else Answer(ticket, trouble=Trouble(*trouble))

    def _replace(self, worker: _Worker) -> int:
        """A new worker in the place of this one, which is ended; its exit code."""
        worker.process.kill()
        code = worker.process.wait()
        worker.connection.close()
        self._workers[self._workers.index(worker)] = _start()
        return code


def _start() -> _Worker:
    ours, theirs = socket.socketpair()
    with theirs:
        # Workers are the parallelism: threads of numerical libraries inside them would only compete.
        environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **os.environ}
        code = _WORKER % (theirs.fileno(), os.getpid())
        command = [sys.executable, "-c", code, json.dumps(sys.path)]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment)
    return _Worker(process, Connection(ours.detach()))


def _send(worker: _Worker, function: bytes, shard: bytes) -> None:
    try:
        worker.connection.send((None if worker.function == function else function, shard))
        worker.function = function
    except (BrokenPipeError, ConnectionResetError):
        pass  # the worker is dead: `_receive` finds out


def _pickled_function(fn: Callable, label: str) -> bytes:
    try:
        function = pickle.dumps(fn)
    except Exception as error:
        raise ValueError(
            f"{label}: the function given to map_shards must pickle (a module-level function or a frozen "
            f"dataclass, no lambda or closure): {error}"
        ) from error
    _Importable(io.BytesIO(function), label).load()
    return function


class _Importable(pickle.Unpickler):
    """Reads what is sent to workers as they will, and refuses what they could not import."""

    def __init__(self, file: io.BytesIO, label: str):
        super().__init__(file)
        self._label = label

    def find_class(self, module: str, name: str) -> Any:
        if module == "__main__":
            raise ValueError(
                f"{self._label}: {name!r} lives in the script that was started; move it to a module that workers import"
            )
        return super().find_class(module, name)
