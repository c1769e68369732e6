"""What a launch does, as values: files to write and commands to run. A dry run prints them as one shell script.

print(script(steps))        what would be done; nothing is
code = execute(steps)       does it
"""

import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TRIES, PAUSE = 30, 5.0  # to take up a connection again; seconds more before each: a network may be away for minutes
LOST = 255  # ssh's exit code when the connection broke, not the command


@dataclass(frozen=True)
class File:
    """A text file to write; its folder is made."""

    path: Path
    text: str


@dataclass(frozen=True)
class Command:
    """A command to run. log: where its output goes besides; after_loss: what to run when ssh lost the connection."""

    argv: tuple[str, ...]
    log: Path | None = None
    after_loss: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Together:
    """Commands to run at the same time; the largest exit code counts."""

    commands: tuple[Command, ...]


Step = File | Command | Together


def script(steps: Sequence[Step]) -> str:
    """The steps as a shell script that a person can read, or run."""
    return "\n".join(line for step in steps for line in _lines(step))


def _lines(step: Step) -> list[str]:
    if isinstance(step, File):
        end = "END"
        while end in step.text.splitlines():
            end += "_"
        folder, path = shlex.quote(str(step.path.parent)), shlex.quote(str(step.path))
        return [f"mkdir -p {folder}", f"cat > {path} <<'{end}'", step.text.rstrip("\n"), end]
    if isinstance(step, Command):
        return [shlex.join(step.argv) + (f" > {shlex.quote(str(step.log))} 2>&1" if step.log else "")]
    return [*(f"{line} &" for command in step.commands for line in _lines(command)), "wait"]


def execute(steps: Sequence[Step]) -> int:
    """Does the steps in order, up to the first that fails; returns its exit code, or 0."""
    for step in steps:
        if isinstance(step, File):
            step.path.parent.mkdir(parents=True, exist_ok=True)
            step.path.write_text(step.text, encoding="utf-8")
            continue
        code = _run_together(step.commands) if isinstance(step, Together) else _run_together((step,))
        if code:
            return code
    return 0


def _run_together(commands: Sequence[Command]) -> int:
    """Each one's end is told when it comes: the others may run on for days, or wait for it in vain."""
    for command in commands:
        if command.log:
            print(f"started  {_shown(command)}", file=sys.stderr, flush=True)
    running = {index: _start(command.argv, command.log) for index, command in enumerate(commands)}
    codes, tries, waiting = [0] * len(commands), [0] * len(commands), dict[int, float]()
    while running or waiting:
        time.sleep(0.02)
        for index in [index for index, when in waiting.items() if time.monotonic() > when]:
            del waiting[index]
            command = commands[index]
            running[index] = _start(command.after_loss or command.argv, command.log, append=True)
        for index, process in list(running.items()):
            if process.poll() is None:
                continue
            del running[index]
            command, codes[index] = commands[index], process.returncode
            if codes[index] == LOST and command.after_loss and tries[index] < TRIES:
                tries[index] += 1
                waiting[index] = time.monotonic() + min(60.0, PAUSE * tries[index])
                print(
                    f"connection lost ({_shown(command)}); again, {tries[index]} of {TRIES}",
                    file=sys.stderr,
                    flush=True,
                )
            elif codes[index] or len(commands) > 1:
                print(f"exit {codes[index]:>3}  {_shown(command)}", file=sys.stderr, flush=True)
    return max(codes, key=abs)


def _start(argv: Sequence[str], log: Path | None, *, append: bool = False) -> subprocess.Popen:
    try:
        if log is None:
            return subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab" if append else "wb") as output:
            return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    except FileNotFoundError:
        raise ValueError(
            f"there is no command {argv[0]!r} here: install it, or use --dry-run to see the commands"
        ) from None


def _shown(command: Command) -> str:
    return f"log {command.log}" if command.log else shlex.join(command.argv)[:120]
