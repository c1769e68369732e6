"""Process 0's list of the processes of a run: who has come, what each said last, and when the run must end.

Messages are lines of JSON over TCP.
"""

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

STOPPED = 75  # exit code of a run that can go on: start it again (EX_TEMPFAIL of sysexits.h)
BAD_INPUT = 1
SENDING = 5.0  # seconds after which one that takes in nothing that it is sent is not waited for


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
        """Where it stands, for people; now: `time.monotonic`."""
        return (
            f"step {self.step}, {self.doing} for {now - self.since:.0f} s, last heard of {now - self.heard:.0f} s ago"
        )


class Roster:
    """The list. Two threads of its own and one for each process; `finished` is set when all have left."""

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
        told = messages(connection)
        hello = next(told, None)
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
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(SENDING), 0))
            self._members[index] = Member(connection, time.monotonic())
            if len(self._members) == self._count:
                self._tell_all({"kind": "values", "name": "join", "values": [self._jax_port]})
        with contextlib.suppress(OSError):
            for message in told:
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
                send(member.connection, {"kind": "beat"})
            elif message["kind"] == "value":
                values = self._values.setdefault(message["name"], {})
                values[index] = message["value"]
                if len(values) == self._count:
                    answer = [values[place] for place in range(self._count)]
                    self._tell_all({"kind": "values", "name": message["name"], "values": answer})
                    del self._values[message["name"]]
            elif message["kind"] == "bye":
                self._left.add(index)
                if message["error"]:
                    self._end(f"process {index}: {message['error']}", message["code"], but=index)
                if len(self._left) == self._count:
                    self.finished.set()

    def _tell_all(self, message: dict[str, Any]) -> None:
        """One that cannot be told is gone or silent, which its own thread or the watch finds: not the sender is."""
        for member in self._members.values():
            with contextlib.suppress(OSError):
                send(member.connection, message)

    def _watch(self) -> None:
        began, pauses = time.monotonic(), Pauses(self._config.beat / 2)
        while not self.finished.wait(pauses.seconds):
            lost, now = pauses.lost(), time.monotonic()
            with self._lock:
                for member in self._members.values():
                    member.heard, member.since = min(now, member.heard + lost), min(now, member.since + lost)
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
                    send(member.connection, {"kind": "end", "reason": reason, "code": code})
        self.finished.set()


class Pauses:
    """Tells a thread that wakes every `seconds` how long it was kept from it: its process was stopped, or got no turn.

    That time says nothing of how long others were silent.
    """

    def __init__(self, seconds: float):
        self.seconds, self._woke = seconds, time.monotonic()

    def lost(self) -> float:
        """Seconds by which this waking is late."""
        before, self._woke = self._woke, time.monotonic()
        return max(0.0, self._woke - before - self.seconds)


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """One message."""
    connection.sendall(json.dumps(message).encode() + b"\n")


def messages(connection: socket.socket) -> Iterator[dict[str, Any]]:
    """The messages of a connection until it ends; a line that is no message ends it."""
    with contextlib.suppress(OSError, ValueError), connection.makefile("rb") as lines:
        for line in lines:
            yield json.loads(line)
