"""The processes of one run keep in touch, over plain TCP and without any device: who is there, what each one is doing.

    processes = join(find_place(os.environ), MeetingConfig())     all are there, or a sentence names who is missing
    processes.exchange("config", key)                             every process's value, by index
    processes.beat(14, "waiting for batch 15")                    for the watchdog, and for whoever reads its report

Process 0 keeps the list. A process that dies, falls silent or stands still ends the run on all of them: each writes the
Python stacks of its threads and exits with 75, so that a launcher starts the run again. A collective that waits for a
process that is gone would wait for ever, and says nothing.

jax's own service aborts the program where a process is missing, and does not say which one: this runs before it.
"""

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

STOPPED = 75  # exit code of a run that can go on: start it again (EX_TEMPFAIL of sysexits.h)
BAD_INPUT = 1
SAYS_WAITING = 15.0  # seconds between two lines of a process that waits


@dataclass(frozen=True, kw_only=True)
class MeetingConfig:
    """Limits in seconds.

    join: until all processes must be there. silent: without a word from a process, which tells of itself from a thread
    of its own, so a long step is no silence. stall: without a finished step; ten times as long for a compilation, an
    evaluation or a save.
    """

    join: float = 120.0
    silent: float = 60.0
    stall: float = 1200.0

    def __post_init__(self) -> None:
        for name in ("join", "silent", "stall"):
            if getattr(self, name) <= 0:
                raise ValueError(f"meeting.{name}={getattr(self, name)}: expected seconds above 0")

    @property
    def beat(self) -> float:
        """Seconds between two signs of life."""
        return min(5.0, self.silent / 4)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a process stands: `address` is host:port of process 0. local_device: the one GPU it uses, None for all."""

    address: str
    index: int
    count: int
    local_device: int | None = None


@dataclass
class Member:
    """What process 0 knows of one process. since: of the step that it is at; times are of `time.monotonic`."""

    connection: socket.socket
    heard: float
    step: int = 0
    doing: str = "starting"
    patience: float = 1.0
    since: float = field(default_factory=time.monotonic)

    def told(self, now: float) -> str:
        return (
            f"step {self.step}, {self.doing} for {now - self.since:.0f} s, last heard of {now - self.heard:.0f} s ago"
        )


class Processes:
    """This process among the others of its run. A run of one process has the same methods and no connection."""

    def __init__(self, place: Place | None = None, config: MeetingConfig = MeetingConfig()):
        self.place, self.config = place, config
        self.index, self.count = (0, 1) if place is None else (place.index, place.count)
        self.jax_address: str | None = None  # where process 0's jax service will listen
        self.stacks: Path | None = None  # folder for the stacks of a run that is ended
        self._connection: socket.socket | None = None
        self._state: dict[str, Any] = {"step": 0, "doing": "starting", "patience": 1.0}
        self._since = self._heard = time.monotonic()
        self._answers: dict[str, list[Any]] = {}
        self._news, self._sending = threading.Condition(), threading.Lock()
        self._closed, self._ending = threading.Event(), False

    @property
    def chief(self) -> bool:
        """Whether this process writes the run's files and speaks to people."""
        return self.index == 0

    def beat(self, step: int, doing: str, *, patience: float = 1.0) -> None:
        """Notes what the main thread is at. patience: times `stall` that it may take."""
        self._state = {"step": step, "doing": doing, "patience": patience}
        self._since = time.monotonic()

    def exchange(self, name: str, value: Any, *, waiting: str = "", progress: Callable[[], str] = str) -> list[Any]:
        """The values that all processes give under this name, by process index. A name is used once.

        waiting: what the others are waited for, said now and then with what `progress` returns.
        """
        if self._connection is None:
            return [value]
        self._send({"kind": "value", "name": name, "value": value})
        began = told = time.monotonic()
        with self._news:
            while name not in self._answers:
                self._news.wait(0.5)
                if waiting and time.monotonic() - told > SAYS_WAITING:
                    told = time.monotonic()
                    print(f"process {self.index}: waiting for {waiting}, {told - began:.0f} s {progress()}", flush=True)
            return self._answers.pop(name)

    def close(self, error: str = "", code: int = 0) -> None:
        """Leaves. With an error the others end too, with the same sentence and exit code."""
        self._wait_for_end()
        if self._connection is not None and not self._closed.is_set():
            with contextlib.suppress(OSError):
                self._send({"kind": "bye", "error": error, "code": code})
            if self.chief:  # the list is kept until all have left
                self._server.finished.wait(30.0 if not error else 2.0)
        self._closed.set()
        faulthandler.cancel_dump_traceback_later()

    def lost(self, error: Exception) -> None:
        """After an error of a device: where another process's end is the reason, this one ends as the watchdog says."""
        if self._connection is None or "jax" not in type(error).__module__.lower():
            return self.close(f"{type(error).__name__}: {error}", BAD_INPUT)
        print(f"process {self.index}: {' '.join(str(error).split())[:300]}", file=sys.stderr, flush=True)
        time.sleep(2 * self.config.beat + 2.0)  # process 0 will have noticed
        self._end("a collective broke off and no process is known to have ended", STOPPED)

    # ---- the watchdog ------------------------------------------------------------------------------------------------
    def watch(self, connection: socket.socket | None = None) -> None:
        """Starts the threads that tell of this process and listen to process 0."""
        self._connection = connection
        for target in (self._tell,) if connection is None else (self._tell, self._listen):
            threading.Thread(target=target, daemon=True, name=f"meeting{target.__name__}").start()

    def _tell(self) -> None:
        """Signs of life. faulthandler's own thread speaks where this one cannot, because the interpreter is held."""
        limit = self.config.silent
        while not self._closed.wait(self.config.beat):
            faulthandler.dump_traceback_later(limit, exit=False)
            idle = time.monotonic() - self._since
            if self._connection is None:
                if idle > self.config.stall * self._state["patience"]:
                    self._end(f"no step was finished for {idle:.0f} s ({self._state['doing']})", STOPPED)
                continue
            with contextlib.suppress(OSError):
                self._send({"kind": "beat", "idle": idle} | self._state)
            if time.monotonic() - self._heard > limit:
                self._end(f"process 0 has not been heard of for {limit:.0f} s", STOPPED)
        faulthandler.cancel_dump_traceback_later()

    def _listen(self) -> None:
        assert self._connection is not None
        for message in _messages(self._connection):
            self._heard = time.monotonic()
            if message["kind"] == "end":
                self._end(message["reason"], message["code"])
            with self._news:
                if message["kind"] == "values":
                    self._answers[message["name"]] = message["values"]
                self._news.notify_all()
        if not self._closed.is_set():
            self._end("process 0 is gone", STOPPED)

    def _end(self, reason: str, code: int) -> NoReturn:
        """The run ends here: the reason, the stacks of all threads where it can go on, and out."""
        if self._closed.is_set():
            time.sleep(60.0)  # the main thread is leaving
        self._ending = True
        print(f"error: {reason}", file=sys.stderr, flush=True)
        if code == STOPPED and self.stacks is not None:
            print(f"process {self.index} at step {self._state['step']}, {self._state['doing']}", file=sys.stderr)
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
            with contextlib.suppress(OSError):
                self.stacks.mkdir(parents=True, exist_ok=True)
                with (self.stacks / f"process-{self.index}.txt").open("w") as file:
                    print(f"{reason}\nstep {self._state['step']}, {self._state['doing']}", file=file, flush=True)
                    faulthandler.dump_traceback(file, all_threads=True)
        if self.chief:
            time.sleep(1.0)  # jax's service lives here: the others would be aborted by it instead of ending themselves
        sys.stderr.flush()
        os._exit(code)

    def _wait_for_end(self) -> None:
        """Holds the main thread where the run is being ended by another one."""
        while self._ending:
            time.sleep(1.0)

    def _send(self, message: dict[str, Any]) -> None:
        assert self._connection is not None
        with self._sending:
            _send(self._connection, message)


class Server:
    """Process 0's list of all processes."""

    def __init__(self, listener: socket.socket, count: int, config: MeetingConfig, jax_port: int):
        self._listener, self._count, self._config, self._jax_port = listener, count, config, jax_port
        self._members: dict[int, Member] = {}
        self._values: dict[str, dict[int, Any]] = {}
        self._left: set[int] = set()
        self._lock, self._ended = threading.RLock(), False
        self.finished = threading.Event()
        for target in (self._accept, self._watch):
            threading.Thread(target=target, daemon=True, name=f"list{target.__name__}").start()

    def _accept(self) -> None:
        while not self.finished.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        messages = _messages(connection)
        hello = next(messages, None)
        if not isinstance(hello, dict) or hello.get("kind") != "join":
            connection.close()  # not one of ours
            return
        index = hello["index"]
        with self._lock:
            if hello["count"] != self._count:
                return self._end(
                    f"process {index} was started as one of {hello['count']}, process 0 as one of {self._count}",
                    BAD_INPUT,
                )
            if index in self._members:
                return self._end(f"two processes say that they are number {index} of {self._count}", BAD_INPUT)
            self._members[index] = Member(connection, time.monotonic())
            if len(self._members) == self._count:
                for member in self._members.values():
                    _send(member.connection, {"kind": "values", "name": "join", "values": [self._jax_port]})
        with contextlib.suppress(OSError):
            for message in messages:
                self._received(index, message)
        with self._lock:
            if index not in self._left:
                self._end(f"process {index} is gone; {self._everyone()}", STOPPED)

    def _received(self, index: int, message: dict[str, Any]) -> None:
        with self._lock:
            member = self._members[index]
            member.heard = time.monotonic()
            if message["kind"] == "beat":
                member.step, member.doing, member.patience = message["step"], message["doing"], message["patience"]
                member.since = member.heard - message["idle"]
                _send(member.connection, {"kind": "beat"})
            elif message["kind"] == "value":
                values = self._values.setdefault(message["name"], {})
                values[index] = message["value"]
                if len(values) == self._count:
                    answer = [values[place] for place in range(self._count)]
                    for other in self._members.values():
                        _send(other.connection, {"kind": "values", "name": message["name"], "values": answer})
                    del self._values[message["name"]]
            elif message["kind"] == "bye":
                self._left.add(index)
                if message["error"]:
                    self._end(f"process {index}: {message['error']}", message["code"], but=index)
                if len(self._left) == self._count:
                    self.finished.set()

    def _watch(self) -> None:
        began = time.monotonic()
        while not self.finished.wait(self._config.beat / 2):
            now = time.monotonic()
            with self._lock:
                here = [member for index, member in sorted(self._members.items()) if index not in self._left]
                if len(self._members) < self._count:
                    if now - began > self._config.join:
                        missing = [str(i) for i in range(self._count) if i not in self._members]
                        self._end(
                            f"{len(self._members)} of {self._count} processes joined within {self._config.join:g} s; "
                            f"missing: {', '.join(missing)}",
                            STOPPED,
                        )
                    continue
                silent = [m for m in here if now - m.heard > self._config.silent]
                stalled = [m for m in here if now - m.since > self._config.stall * m.patience]
                if silent:
                    self._end(f"{self._names(silent)} fell silent; {self._everyone()}", STOPPED)
                elif stalled:
                    self._end(f"{self._names(stalled)} stands still; {self._everyone()}", STOPPED)

    def _names(self, some: list[Member]) -> str:
        return "process " + ", ".join(str(i) for i, member in sorted(self._members.items()) if member in some)

    def _everyone(self) -> str:
        now = time.monotonic()
        return "; ".join(f"process {index}: {member.told(now)}" for index, member in sorted(self._members.items()))

    def _end(self, reason: str, code: int, but: int | None = None) -> None:
        if self._ended:
            return
        self._ended = True
        for index, member in self._members.items():
            if index not in (but, *self._left):
                with contextlib.suppress(OSError):
                    member.connection.settimeout(1.0)
                    _send(member.connection, {"kind": "end", "reason": reason, "code": code})
        self.finished.set()


def join(place: Place | None, config: MeetingConfig) -> Processes:
    """Meets the other processes of the run; returns when all are there. None: a run of one process.

    Errors: a sentence and exit code 75 where some do not come within `config.join` seconds; ValueError for an address
    that is none.
    """
    processes = Processes(place, config)
    if place is None or place.count == 1:
        processes.watch()
        return processes
    host, _, port = place.address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"coordinator {place.address!r}: expected HOST:PORT of process 0")
    if place.index == 0:
        listener = socket.create_server(("", int(port)), backlog=1024)
        processes._server = Server(listener, place.count, config, _free_port(int(port) + 1))
    connection = _connect(("127.0.0.1" if place.index == 0 else host, int(port)), place, config)
    processes.watch(connection)
    processes._send({"kind": "join", "index": place.index, "count": place.count})
    with processes._news:
        while "join" not in processes._answers:  # process 0 ends the run where somebody does not come
            processes._news.wait()
        processes.jax_address = f"{host}:{processes._answers.pop('join')[0]}"
    processes._heard = time.monotonic()
    return processes


def _connect(address: tuple[str, int], place: Place, config: MeetingConfig) -> socket.socket:
    deadline = time.monotonic() + config.join
    while True:
        try:
            connection = socket.create_connection(address, timeout=min(5.0, config.join))
            connection.settimeout(None)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        except OSError as error:
            if time.monotonic() > deadline:
                print(
                    f"error: process {place.index} of {place.count} could not reach process 0 at {place.address} "
                    f"within {config.join:g} s ({error}): is it running, and may this machine reach that port?",
                    file=sys.stderr,
                )
                sys.exit(STOPPED)
            time.sleep(0.2)


def _free_port(wanted: int) -> int:
    """`wanted` where it is free, or one that is."""
    for port in (wanted, 0):
        with contextlib.suppress(OSError, OverflowError), socket.create_server(("", port)) as probe:
            return probe.getsockname()[1]
    raise OSError("no port is free for jax's coordination service")


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _messages(connection: socket.socket) -> Any:
    """The messages of a connection until it ends; a line that is no message ends it."""
    with contextlib.suppress(OSError, ValueError), connection.makefile("rb") as lines:
        for line in lines:
            yield json.loads(line)
