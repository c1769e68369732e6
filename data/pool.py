"""The hands of this machine for the scheduler: this process, or worker processes beside it."""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from data.scheduler import Answer, Trouble
from data.worker import failure

_WORKER = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from data.worker import main; main(%d, %d)"


@dataclass(eq=False)
class Worker:
    """One worker process, the pipe to it, the function it holds and the ticket it works on."""

    process: subprocess.Popen
    connection: Connection
    function: bytes | None = None
    ticket: int | None = None


def with_model(shard: Any, *, fn: Callable[[Any, Any], Any], model: Callable[[], Any]) -> Any:
    """`fn` on a shard and the model, which is built when the first shard comes."""
    return fn(shard, model())  # not before the first shard: there may be none


class Inline:
    """Hands of this process: one shard at a time, done when it is waited for."""

    def __init__(self, fn: Callable[[Any], Any], shards: Sequence[Any]):
        self._fn, self._shards = fn, shards
        self._next: tuple[int, int] | None = None

    def free(self) -> int:
        """As `Hands.free`."""
        return int(self._next is None)

    def start(self, ticket: int, index: int) -> None:
        """As `Hands.start`; the work is done in `wait`."""
        self._next = ticket, index

    def wait(self, seconds: float | None) -> Sequence[Answer]:
        """As `Hands.wait`; does the work, however many seconds it takes."""
        assert self._next is not None
        (ticket, index), self._next = self._next, None
        try:
            return [Answer(ticket, self._fn(self._shards[index]))]
        except Exception as error:
            return [Answer(ticket, trouble=Trouble(*failure(error)))]

    def stop(self, ticket: int) -> None:
        """As `Hands.stop`."""
        self._next = None


class Spread:
    """Hands of worker processes; a dead one is replaced."""

    def __init__(self, workers: list[Worker], count: int, function: bytes, shards: Sequence[Any]):
        self._workers, self._function, self._shards, self._count = workers, function, shards, count
        while len(workers) < count:
            workers.append(_start())

    def free(self) -> int:
        """As `Hands.free`."""
        return sum(worker.ticket is None for worker in self._workers)

    def start(self, ticket: int, index: int) -> None:
        """As `Hands.start`."""
        worker = next(worker for worker in self._workers if worker.ticket is None)
        worker.ticket = ticket
        _send(worker, self._function, pickle.dumps(self._shards[index]), self._count)

    def wait(self, seconds: float | None) -> Sequence[Answer]:
        """As `Hands.wait`."""
        busy = {worker.connection: worker for worker in self._workers if worker.ticket is not None}
        ready = wait(list(busy), timeout=seconds)
        return [self._receive(busy[connection]) for connection in ready if isinstance(connection, Connection)]

    def stop(self, ticket: int) -> None:
        """As `Hands.stop`; the process that does the work is killed and replaced."""
        worker = next((worker for worker in self._workers if worker.ticket == ticket), None)
        if worker is not None:  # else its answer is in the same batch as the one that won
            self._replace(worker)

    def _receive(self, worker: Worker) -> Answer:
        assert worker.ticket is not None
        ticket = worker.ticket
        try:
            result, trouble = worker.connection.recv()
        except (EOFError, OSError):
            code = self._replace(worker)
            how = f"killed by {signal.Signals(-code).name} (out of memory?)" if code < 0 else f"ended with code {code}"
            return Answer(ticket, trouble=Trouble(f"the worker was {how} each time it was tried", died=True))
        worker.ticket = None
        return Answer(ticket, pickle.loads(result)) if trouble is None else Answer(ticket, trouble=Trouble(*trouble))

    def _replace(self, worker: Worker) -> int:
        """A new worker in the place of this one, which is ended; its exit code."""
        worker.process.kill()
        code = worker.process.wait()
        worker.connection.close()
        self._workers[self._workers.index(worker)] = _start()
        return code


def _start() -> Worker:
    ours, theirs = socket.socketpair()
    with theirs:
        # Workers are the parallelism: threads of numerical libraries inside them would only compete.
        environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **os.environ}
        code = _WORKER % (theirs.fileno(), os.getpid())
        command = [sys.executable, "-c", code, json.dumps(sys.path)]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment)
    return Worker(process, Connection(ours.detach()))


def _send(worker: Worker, function: bytes, shard: bytes, workers: int) -> None:
    try:
        worker.connection.send((None if worker.function == function else function, shard, workers))
        worker.function = function
    except (BrokenPipeError, ConnectionResetError):
        pass  # the worker is dead: `_receive` finds out


def pickled_function(fn: Callable, label: str) -> bytes:
    """What workers are sent; ValueError for what they could not import."""
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
