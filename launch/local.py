"""N processes on this machine as one run, watched: one that dies takes the others down, and all start again.

    run(["python", "-m", "train.main", "--config", "configs/quickstart.py"], processes=2)

Lines come out with the number of their process in front. A process that ends with 75 or by a signal is a run that can
go on, and is started again; one that ends with another code has said why, and is not.
"""

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

STOPPED = 75  # a run that can go on (EX_TEMPFAIL of sysexits.h)
GRACE = 30.0  # seconds in which the others may end by themselves, with their stacks, once one has
LAST_WORDS = 5.0  # seconds between SIGTERM and SIGKILL for those that did not
ALIVE = 600.0  # seconds after which a start counts as a success: later failures are counted anew


def run(
    command: Sequence[str],
    *,
    processes: int = 1,
    devices: int | None = None,
    restarts: int = 3,
    environment: Mapping[str, str] | None = None,
    grace: float = GRACE,
    stopped: Callable[[], None] = lambda: None,
) -> int:
    """Runs the command as that many processes until it ends; returns its exit code, 75 where it was asked to stop.

    devices: fake CPU devices of each process; None: those that it has. restarts: starts after a failure, without ten
    good minutes between. environment: variables besides this process's own. grace: seconds for the others to end by
    themselves once one has. SIGTERM and SIGINT are handed on, and told by `stopped`: 75 is also the code of a run that
    ended too often.
    """
    if processes < 1 or restarts < 0:
        raise ValueError(f"local: processes={processes} and restarts={restarts}: expected at least 1 and 0")
    group = _Group(command, processes, devices, dict(environment or {}))
    previous = {number: signal.signal(number, group.asked) for number in (signal.SIGTERM, signal.SIGINT)}
    failures = 0
    try:
        while True:
            began = time.monotonic()
            code = group.once(grace)
            if group.stop_asked:
                stopped()
            if code == 0 or group.stop_asked:
                return 0 if code == 0 else STOPPED
            if code not in (STOPPED, None):
                return code
            failures = 1 if time.monotonic() - began > ALIVE else failures + 1
            if failures > restarts:
                _say(f"ended {failures} times without going on: not started again")
                return STOPPED
            _say(f"starting all {processes} processes again ({failures} of {restarts})")
    finally:
        group.end(0.0)
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Group:
    """The processes of one start."""

    def __init__(self, command: Sequence[str], count: int, devices: int | None, environment: dict[str, str]):
        self._command, self._count, self._devices, self._environment = list(command), count, devices, environment
        self._running: list[subprocess.Popen[bytes]] = []
        self.stop_asked = False

    def asked(self, number: int, _: Any) -> None:
        """Hands a signal on: the processes save and end by themselves."""
        self.stop_asked = True
        for process in self._running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def once(self, grace: float) -> int | None:
        """One start, to the end of all its processes. The exit code; None where one was killed."""
        port = _two_free_ports()
        with selectors.DefaultSelector() as streams:
            self._running = []
            for index in range(self._count):
                self._running.append(self._start(index, port))
            if self.stop_asked:  # while they were started, or between two starts
                self.asked(signal.SIGTERM, None)
            for index, process in enumerate(self._running):
                assert process.stdout is not None
                os.set_blocking(process.stdout.fileno(), False)
                streams.register(process.stdout, selectors.EVENT_READ, [index, b""])
            first: float | None = None  # when the first one failed, and how: what the others then do follows from it
            codes: list[int] = []
            while any(process.poll() is None for process in self._running) or streams.get_map():
                self._copy_lines(streams)
                failed = [process for process in self._running if process.poll() not in (None, 0)]
                if failed and first is None:
                    first, codes = time.monotonic(), [process.returncode for process in failed]
                    names = ", ".join(
                        f"process {index} {_ending(process.returncode)}"
                        for index, process in enumerate(self._running)
                        if process in failed
                    )
                    _say(names)
                if first is not None and time.monotonic() - first > grace:
                    self.end(LAST_WORDS)
                if all(process.poll() is not None for process in self._running) and not self._copy_lines(streams):
                    break  # a grandchild may hold a stream open
        for process in self._running:
            process.wait()
        if any(code < 0 for code in codes):
            return None
        return next((code for code in codes if code != STOPPED), STOPPED if codes else 0)

    def end(self, patience: float) -> None:
        """Ends what is still running, and whatever it started, and takes its exit codes: no zombie is left."""
        for number in (signal.SIGTERM, signal.SIGKILL) if patience else (signal.SIGKILL,):
            for process in self._running:
                if process.poll() is None:
                    _signal_group(process, number)
            deadline = time.monotonic() + patience
            while number == signal.SIGTERM and any(p.poll() is None for p in self._running):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.05)
        for process in self._running:
            process.wait()
            _signal_group(process, signal.SIGKILL)  # workers that outlived it

    def _variables(self, index: int, port: int) -> dict[str, str]:
        """What a process has in its environment besides this one's."""
        environment = self._environment | {"PYTHONUNBUFFERED": "1"}
        if self._count > 1:
            environment |= {
                "SLUICE_COORDINATOR": f"127.0.0.1:{port}",
                "SLUICE_PROCESS_INDEX": str(index),
                "SLUICE_PROCESS_COUNT": str(self._count),
            }
        if self._devices is not None:
            flags = [
                f
                for f in environment.get("XLA_FLAGS", os.environ.get("XLA_FLAGS", "")).split()
                if "host_platform_device_count" not in f
            ]
            flags.append(f"--xla_force_host_platform_device_count={self._devices}")
            environment |= {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
        return environment

    def _start(self, index: int, port: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command,
            env=os.environ | self._variables(index, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _copy_lines(self, streams: selectors.BaseSelector) -> bool:
        """Copies whole lines to our own output; whether there were any."""
        any_lines = False
        for key, _ in streams.select(timeout=0.1):
            stream: BinaryIO = key.fileobj  # type: ignore[assignment]
            index, rest = key.data
            data = stream.read(1 << 16)
            if not data:
                streams.unregister(stream)
                data = b"\n" if rest else b""
            *lines, key.data[1] = (rest + (data or b"")).split(b"\n")
            for line in lines:
                prefix = f"[{index}] ".encode() if self._count > 1 else b""
                sys.stdout.buffer.write(prefix + line + b"\n")
                any_lines = True
            sys.stdout.flush()
        return any_lines


def _ending(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    """To the process and its children; a stopped one (SIGSTOP) ends by SIGKILL all the same."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _two_free_ports() -> int:
    """A port that is free together with the one after it."""
    for _ in range(100):
        with socket.create_server(("127.0.0.1", 0)) as one:
            port = one.getsockname()[1]
            try:
                with socket.create_server(("127.0.0.1", port + 1)):
                    return port
            except OSError:
                continue
    raise OSError("no two neighbouring ports are free on this machine")


def _say(text: str) -> None:
    print(f"launch: {text}", file=sys.stderr, flush=True)
