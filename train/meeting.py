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
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from train.roster import BAD_INPUT, STOPPED, MeetingConfig, Pauses, Roster, messages, send

SAYS_WAITING = 15.0  # seconds between two lines of a process that waits
LATE = 0.1  # seconds by which a thread may wake late without a reason


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a process stands: `address` is host:port of process 0. local_device: the one GPU it uses, None for all."""

    address: str
    index: int
    count: int
    local_device: int | None = None


class Processes:
    """This process among the others of its run. A run of one process has the same methods and no connection."""

    def __init__(self, place: Place | None = None, config: MeetingConfig | None = None):
        self.place, self.config = place, config or MeetingConfig()
        self.index, self.count = (0, 1) if place is None else (place.index, place.count)
        self.jax_address: str | None = None  # where process 0's jax service will listen
        self.stacks: Path | None = None  # folder for the stacks of a run that is ended
        self._connection: socket.socket | None = None
        self._roster: Roster | None = None  # of process 0
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
            if self._roster is not None:  # the list is kept until all have left
                self._roster.finished.wait(30.0 if not error else 2.0)
        self._closed.set()
        faulthandler.cancel_dump_traceback_later()

    def lost(self, error: Exception) -> None:
        """After an error of a device: where another process's end is the reason, this one ends as the watchdog says.

        Too little memory is this process's own reason, and all end with it.
        """
        if self._connection is None or "jax" not in type(error).__module__.lower():
            return self.close(f"{type(error).__name__}: {error}", BAD_INPUT)
        if "RESOURCE_EXHAUSTED" in str(error):  # it would be again, however often the run is started
            text = " ".join(str(error).split())[:300]
            advice = "raise train.grad_accum_steps or mesh.fsdp, or let --auto-fit choose"
            return self.close(f"out of memory while {self._state['doing']} ({text}): {advice}", BAD_INPUT)
        print(f"process {self.index}: {' '.join(str(error).split())[:300]}", file=sys.stderr, flush=True)
        time.sleep(2 * self.config.beat + 2.0)  # process 0 will have noticed
        self._end("a collective broke off and no process is known to have ended", STOPPED)

    # ---- the watchdog ------------------------------------------------------------------------------------------------
    def watch(self, connection: socket.socket | None = None) -> None:
        """Starts the threads that tell of this process and listen to process 0."""
        self._connection = connection
        self._since = self._heard = time.monotonic()
        for target in (self._tell,) if connection is None else (self._tell, self._listen):
            threading.Thread(target=target, daemon=True, name=f"meeting{target.__name__}").start()

    def _tell(self) -> None:
        """Signs of life. faulthandler's own thread speaks, and ends the process, where this one cannot because the
        interpreter is held: the others have ended by then, and start again only with this one."""
        limit, pauses = self.config.silent, Pauses(self.config.beat)
        while not self._closed.wait(pauses.seconds):
            lost, now = pauses.lost(), time.monotonic()
            if lost > LATE:
                self._heard, self._since = min(now, self._heard + lost), min(now, self._since + lost)
            idle = now - self._since
            if self._connection is None:
                if idle > self.config.stall * self._state["patience"]:
                    self._end(f"no step was finished for {idle:.0f} s ({self._state['doing']})", STOPPED)
                continue
            faulthandler.dump_traceback_later(2 * limit, exit=True)
            with contextlib.suppress(OSError):
                self._send({"kind": "beat", "idle": idle} | self._state)
            if time.monotonic() - self._heard > limit:
                self._end(f"process 0 has not been heard of for {limit:.0f} s", STOPPED)
        faulthandler.cancel_dump_traceback_later()

    def _listen(self) -> None:
        assert self._connection is not None
        for message in messages(self._connection):
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
            send(self._connection, message)


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
        try:
            listener = socket.create_server(("", int(port)), backlog=1024)
        except (OSError, OverflowError) as error:
            raise OSError(
                f"process 0 cannot listen at the coordinator's address {place.address} ({error}): give another port or "
                "end the earlier run that has it"
            ) from None
        processes._roster = Roster(listener, place.count, config, _free_port(int(port) + 1))
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
