"""Engines run a function over shards: a local process pool here, a cluster in a module of its own.

Output bytes never depend on the engine or on the number of workers: a shard's function writes its own files and
returns a small JSON-able result, and results come back in shard order.
"""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from data.worker import failure

S = TypeVar("S")
R = TypeVar("R")

MAX_ATTEMPTS = 3  # tries of a shard whose worker was killed or whose files could not be read or written
_WORKER = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from data.worker import main; main(%d, %d)"


class Engine(Protocol):
    """Where stages run."""

    def map_shards(
        self, fn: Callable[[S], R], shards: Sequence[S], *, label: str, documents: Callable[[R], int] | None = None
    ) -> list[R]:
        """fn(shard) for every shard, results in shard order; a barrier. fn and shards must pickle (spawned workers).

        label names the step on the progress bar and in errors; documents(result) is how many documents a result
        stands for, shown as a rate.
        """
        ...


class ShardError(ValueError):
    """A shard that could not be done: the message is one line naming the step, the shard and the cause.

    `errno` is the operating system's error number where there is one; `details` the traceback in the worker.
    """

    def __init__(self, message: str, *, errno: int | None = None, details: str = ""):
        super().__init__(message)
        self.errno = errno
        self.details = details


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

    def map_shards(
        self, fn: Callable[[S], R], shards: Sequence[S], *, label: str, documents: Callable[[R], int] | None = None
    ) -> list[R]:
        """As `Engine.map_shards`; a progress bar with rate and time left on a terminal."""
        with self.session() as engine:
            return engine.map_shards(fn, shards, label=label, documents=documents)

    @contextmanager
    def session(self) -> Iterator[Engine]:
        """An engine whose workers stay alive between calls; they end with the block."""
        pool = _Pool(self.num_workers)
        try:
            yield pool
        finally:
            pool.close()


@dataclass(eq=False)
class _Worker:
    """One worker process, the pipe to it, the function it holds and the shard it works on."""

    process: subprocess.Popen
    connection: Connection
    function: bytes | None = None
    index: int | None = None


class _Pool:
    """The live workers of one session: started when first needed, at most one a shard."""

    def __init__(self, num_workers: int):
        self._num_workers = num_workers
        self._workers: list[_Worker] = []

    def map_shards(
        self, fn: Callable[[S], R], shards: Sequence[S], *, label: str, documents: Callable[[R], int] | None = None
    ) -> list[R]:
        shards = list(shards)
        results: dict[int, R] = {}
        total = 0
        start = time.monotonic()
        with tqdm(total=len(shards), desc=label, unit="shard", disable=None, dynamic_ncols=True) as bar:
            run = self._inline if min(self._num_workers, len(shards)) <= 1 else self._spread
            for index, result in run(fn, shards, label):
                results[index] = result
                if documents is not None:
                    total += documents(result)
                    rate = total / (time.monotonic() - start)
                    bar.set_postfix_str(f"{total:,} documents, {rate:,.0f}/s", refresh=False)
                bar.update()
        return [results[index] for index in range(len(shards))]

    def close(self) -> None:
        """End all workers at once, whatever they do."""
        for worker in self._workers:
            worker.process.kill()
            worker.connection.close()
        for worker in self._workers:
            worker.process.wait()
        self._workers.clear()

    def _inline(self, fn: Callable[[S], R], shards: Sequence[S], label: str) -> Iterator[tuple[int, R]]:
        for index, shard in enumerate(shards):
            for attempt in range(1, MAX_ATTEMPTS + 1):
                try:
                    result = fn(shard)
                except Exception as error:
                    line, number, details = failure(error)
                    if attempt == MAX_ATTEMPTS or not _transient(number):
                        raise _shard_error(label, index, shards, line, number, details) from error
                else:
                    yield index, result
                    break

    def _spread(self, fn: Callable[[S], R], shards: Sequence[S], label: str) -> Iterator[tuple[int, R]]:
        function = _pickled_function(fn, label)
        queue = list(range(len(shards)))[::-1]
        attempts = [0] * len(shards)
        done = 0
        while len(self._workers) < min(self._num_workers, len(shards)):
            self._workers.append(_start())
        try:
            while done < len(shards):
                for worker in self._workers:
                    if worker.index is None and queue:
                        index = queue.pop()
                        attempts[index] += 1
                        _send(worker, function, index, pickle.dumps(shards[index]))
                for worker in _ready(self._workers):
                    index, result, trouble = self._receive(worker)
                    if trouble is None:
                        done += 1
                        yield index, pickle.loads(result)
                    elif attempts[index] < MAX_ATTEMPTS and _transient(trouble[1]):
                        queue.append(index)
                    else:
                        raise _shard_error(label, index, shards, *trouble)
        except BaseException:
            self.close()  # the others' results are not wanted any more
            raise

    def _receive(self, worker: _Worker) -> tuple[int, Any, tuple[str, int | None, str] | None]:
        """The answer of a worker; a dead one is replaced and answers as a transient failure."""
        index = worker.index
        assert index is not None
        try:
            _, result, trouble = worker.connection.recv()
            worker.index = None
            return index, result, trouble
        except (EOFError, OSError):
            worker.process.kill()
            code = worker.process.wait()
            worker.connection.close()
            self._workers[self._workers.index(worker)] = _start()
            how = f"killed by {signal.Signals(-code).name} (out of memory?)" if code < 0 else f"ended with code {code}"
            return index, None, (f"the worker was {how}, {MAX_ATTEMPTS} times", errno.EINTR, "")


def _start() -> _Worker:
    ours, theirs = socket.socketpair()
    with theirs:
        # Workers are the parallelism: threads of numerical libraries inside them would only compete.
        environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **os.environ}
        code = _WORKER % (theirs.fileno(), os.getpid())
        command = [sys.executable, "-c", code, json.dumps(sys.path)]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment)
    return _Worker(process, Connection(ours.detach()))


def _send(worker: _Worker, function: bytes, index: int, shard: bytes) -> None:
    worker.index = index
    try:
        worker.connection.send((None if worker.function == function else function, index, shard))
        worker.function = function
    except (BrokenPipeError, ConnectionResetError):
        pass  # the worker is dead: `_receive` finds out


def _ready(workers: Sequence[_Worker]) -> list[_Worker]:
    busy = {worker.connection: worker for worker in workers if worker.index is not None}
    return [busy[connection] for connection in wait(list(busy)) if isinstance(connection, Connection)]


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


def _transient(number: int | None) -> bool:
    """Whether an operating-system error may pass on another try: not for what a person has to mend."""
    permanent = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR}
    return number is not None and number not in permanent


def _shard_error(
    label: str, index: int, shards: Sequence[Any], line: str, number: int | None, details: str
) -> ShardError:
    if number in (errno.ENOSPC, errno.EDQUOT):
        line = f"the disk is full ({line}): free some space and run the same command, which goes on from here"
    shard = str(shards[index])
    shard = shard if len(shard) <= 200 else shard[:197] + "..."
    return ShardError(f"{label}: shard {index + 1} of {len(shards)} ({shard}): {line}", errno=number, details=details)
