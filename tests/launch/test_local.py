"""The local launcher: who is started again and who is not, signals handed on, nobody left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launch.local import _Group, run

# Counts its starts in the file of its number, then does what it is told for that start.
PROGRAM = """
import os, signal, subprocess, sys, time
folder, *acts = sys.argv[1:]
index = int(os.environ.get("SLUICE_PROCESS_INDEX", 0))
path = os.path.join(folder, str(index))
start = len(open(path).read()) if os.path.exists(path) else 0
open(path, "a").write("x")
print("start", start, "of", index, os.environ.get("SLUICE_PROCESS_COUNT"), flush=True)
for act in acts[min(start, len(acts) - 1)].split(","):
    what, _, who = act.partition("@")
    if who and int(who) != index:
        continue
    if what == "wait":
        time.sleep(30)
    elif what == "worker":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)  # " + folder])
    elif what == "polite":
        signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
    elif what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        sys.exit(int(what))
"""


def start(folder: Path, *acts: str, processes: int = 2, grace: float = 0.3, **more) -> tuple[int, list[int]]:
    """(exit code, starts of each process); nothing that was started is left."""
    code = run([sys.executable, "-c", PROGRAM, str(folder), *acts], processes=processes, grace=grace, **more)
    shown = subprocess.run(["ps", "-eo", "ppid,stat,args"], capture_output=True, text=True).stdout.splitlines()
    assert not [line for line in shown if str(folder) in line]
    assert not [line for line in shown if line.split()[0] == str(os.getpid()) and line.split()[1].startswith("Z")]
    return code, [len((folder / str(index)).read_text()) for index in range(processes)]


@pytest.mark.parametrize(
    ("acts", "expected"),
    [
        (["0"], (0, [1, 1])),
        (["kill@1,wait@0", "0"], (0, [2, 2])),  # one dies, the other hangs in a collective
        (["75", "0"], (0, [2, 2])),  # preempted
        (["3@1,wait@0", "0"], (3, [1, 1])),  # said why: not started again
        (["75"], (75, [4, 4])),  # never goes on
        (["worker,kill@0,wait@1", "0"], (0, [2, 2])),  # its workers end with it
    ],
)
def test_all_start_again_after_a_kill_or_75_and_not_after_another_code(tmp_path, acts, expected):
    assert start(tmp_path, *acts) == expected


def test_one_that_is_stopped_ends_with_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr("launch.local.LAST_WORDS", 0.3)
    assert start(tmp_path, "stop@1,75@0", "0") == (0, [2, 2])


def test_sigterm_is_handed_on_and_ends_the_launcher_with_75(tmp_path, capfd):
    def ask():
        while not all((tmp_path / name).exists() for name in "01"):
            time.sleep(0.02)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)

    asker = threading.Thread(target=ask)
    asker.start()
    told: list[bool] = []
    assert start(tmp_path, "polite,wait", grace=10.0, stopped=lambda: told.append(True)) == (75, [1, 1])
    assert told
    asker.join()
    out = capfd.readouterr().out.splitlines()
    assert sorted(out) == ["[0] start 0 of 0 2", "[1] start 0 of 1 2"]


def test_sigterm_while_they_are_started_is_handed_on_too(tmp_path, monkeypatch):
    begin = _Group._start

    def interrupted(self, index, port):
        if index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return begin(self, index, port)

    monkeypatch.setattr(_Group, "_start", interrupted)
    began = time.monotonic()
    assert run([sys.executable, "-c", "import time; time.sleep(60)"], processes=2) == 75
    assert time.monotonic() - began < 50


def test_one_process_has_its_lines_as_they_are(tmp_path, capfd):
    program = "import os; print('a b'); print(os.environ['X'], os.environ['XLA_FLAGS'], end='')"
    assert run([sys.executable, "-c", program], devices=2, environment={"X": "1 2"}) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "a b" and lines[1].startswith("1 2 ") and lines[1].endswith("_device_count=2")
