"""Processes that do not come, differ, die, fall silent or stand still: each gives its own sentence, in its limit."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import jax
import pytest

from launch.local import _two_free_ports
from train import distributed
from train.distributed import find_place, first_host
from train.meeting import MeetingConfig, Place, Processes, join
from train.roster import Roster, messages, send

ROOT = Path(__file__).parents[2]
PROGRAM = """
import ctypes, os, sys, time
from pathlib import Path
from train.meeting import MeetingConfig, Place, join
index, count, port, what = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
limits = MeetingConfig(join=float(os.environ.get("JOIN", "2")), silent=1.5, stall=3.0)
processes = join(Place(address="127.0.0.1:" + port, index=index, count=count), limits)
processes.stacks = Path(sys.argv[5])
print(processes.exchange("squares", index * index), flush=True)
if index == 1 and what == "error":
    processes.close("its disk is full", 1)
    sys.exit(1)
for step in range(12):
    if index == 1 and step == 3 and what == "die":
        os._exit(9)
    if index == 1 and step == 3 and what == "stop":
        os.kill(os.getpid(), 19)
    if index == 1 and step == 3 and what == "stall":
        time.sleep(60)
    if index == 1 and step == 3 and what == "hold":
        ctypes.PyDLL(None).sleep(60)  # and no other thread runs
    processes.beat(step, "in its step")
    time.sleep(0.05 if what == "none" else 0.6)
processes.close()
"""


def meet(
    folder: Path, indices: list[int], count: int, what: str = "none", *, between: float = 0.0, join: float = 2.0
) -> list[tuple[int, str]]:
    """(exit code, output) of each process; one that is stopped is ended by SIGKILL when the others have ended.

    between: seconds between two starts. "pause": all are stopped together for longer than they may be silent.
    """
    port, running = str(_two_free_ports()), []
    for index in indices:
        time.sleep(between if running else 0.0)
        command = [sys.executable, "-c", PROGRAM, str(index), str(count), port, what, str(folder / "stacks")]
        environment = os.environ | {"JOIN": str(join)}
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        running.append(subprocess.Popen(command, cwd=ROOT, env=environment, **output))
    if what == "stop":
        running[0].wait(120)
        running[1].send_signal(signal.SIGKILL)
    if what == "pause":
        time.sleep(2.0)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for process in running:
                process.send_signal(number)
            time.sleep(2.5)
    outputs = [process.communicate(timeout=120)[0] for process in running]
    return [(process.returncode, output) for process, output in zip(running, outputs)]


def test_all_learn_what_all_say(tmp_path):
    assert meet(tmp_path, [0, 1, 2], 3) == [(0, "[0, 1, 4]\n")] * 3


def test_who_does_not_come_is_named_by_all_that_did(tmp_path):
    began = time.monotonic()
    sentence = "error: 3 of 4 processes joined within 2 s; missing: 2\n"
    assert meet(tmp_path, [0, 1, 3], 4) == [(75, sentence)] * 3
    assert time.monotonic() - began < 8


def test_one_that_waited_long_for_process_0_waits_on_for_the_others(tmp_path):
    """Process 0 comes later than a silence may last, and another one after that."""
    squares = (0, "[0, 1, 4]\n")
    assert meet(tmp_path, [1, 0, 2], 3, between=2.5, join=60.0) == [squares] * 3


def test_processes_that_were_stopped_together_go_on_together(tmp_path):
    """A suspended machine: nobody was silent while nobody listened."""
    assert meet(tmp_path, [0, 1], 2, "pause") == [(0, "[0, 1]\n")] * 2


def test_one_that_takes_in_nothing_keeps_nobody_from_the_end(tmp_path):
    """It says what it has to say and is stopped: what it is sent fills its connection, and the watch goes on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        roster = Roster(listener, 2, MeetingConfig(silent=2.0), 1)
        both = [socket.create_connection(listener.getsockname()) for _ in range(2)]
        for index, connection in enumerate(both):
            send(connection, {"kind": "join", "index": index, "count": 2})
        told: list[dict] = []
        threading.Thread(target=lambda: told.extend(messages(both[0])), daemon=True).start()
        for index, connection in enumerate(both):
            value = {"kind": "value", "name": "all", "value": "x" * (index * (16 << 20))}
            threading.Thread(target=send, args=(connection, value), daemon=True).start()
        assert roster.finished.wait(60)
        for connection in both:
            connection.shutdown(socket.SHUT_RDWR)
    while not told or told[-1]["kind"] != "end":
        time.sleep(0.01)
    assert [message["kind"] for message in told] == ["values", "values", "end"]
    assert "fell silent; process 0: step 0" in told[-1]["reason"]


def test_without_process_0_the_address_is_named(tmp_path):
    ((code, output),) = meet(tmp_path, [1], 2)
    assert code == 75 and "could not reach process 0 at 127.0.0.1:" in output and "within 2 s" in output


def test_the_sentence_of_one_is_the_sentence_of_all(tmp_path):
    (code_0, output_0), (code_1, _) = meet(tmp_path, [0, 1], 2, "error")
    assert (code_0, code_1) == (1, 1) and output_0.endswith("error: process 1: its disk is full\n")


@pytest.mark.parametrize(
    ("what", "words"), [("die", "is gone"), ("stop", "fell silent"), ("stall", "stands still"), ("hold", "fell silent")]
)
def test_who_dies_or_stalls_is_named_with_steps_and_stacks(tmp_path, what, words):
    results = meet(tmp_path, [0, 1], 2, what)
    code, output = results[0]
    assert code == 75 and f"error: process 1 {words}; process 0: step " in output
    assert "; process 1: step 2, in its step for" in output  # it did not come to tell of step 3
    assert 'File "<string>", line' in output  # the main thread's stack
    written = (tmp_path / "stacks" / "process-0.txt").read_text()
    assert written.startswith(f"process 1 {words}") and "most recent call first" in written
    if what == "stall":
        assert results[1][0] == 75 and (tmp_path / "stacks" / "process-1.txt").exists()
    if what == "hold":  # it ends too, with its stack, though nothing of its own can run
        assert results[1][0] == 1 and "Timeout (0:00:03)!" in results[1][1]


def test_a_port_that_is_taken_is_named_with_its_address():
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match=f"cannot listen at the coordinator's address {address} .*in use"):
            join(Place(address=address, index=0, count=2), MeetingConfig())


def test_too_little_memory_ends_the_run_for_good():
    """Any other error of a device may be the end of another process, after which the run is started again."""
    here, there = socket.socketpair()
    processes = Processes(Place(address="a:1", index=1, count=2))
    processes._connection = here
    processes.beat(3, "in its step")
    processes.lost(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory trying to allocate 9 bytes"))
    (message,) = (json.loads(line) for line in there.recv(1 << 16).splitlines())
    assert (message["kind"], message["code"]) == ("bye", 1)
    assert message["error"].startswith("out of memory while in its step (RESOURCE_EXHAUSTED: Out of memory trying")
    for one in (here, there):
        one.close()


@pytest.mark.parametrize("lacking", ["SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID"])
def test_a_step_of_slurm_without_its_numbers_is_refused(lacking):
    slurm = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "gpu1", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}
    whole = slurm | {"SLURM_LOCALID": "0", "CUDA_VISIBLE_DEVICES": "0,1"}
    assert find_place(whole) is not None
    with pytest.raises(ValueError, match=f"{lacking}=''[:,]"):
        find_place({name: value for name, value in whole.items() if name != lacking})


def test_where_a_process_stands_comes_from_its_environment():
    ours = {"SLUICE_COORDINATOR": "a:1", "SLUICE_PROCESS_INDEX": "1", "SLUICE_PROCESS_COUNT": "2"}
    assert find_place(ours) == Place(address="a:1", index=1, count=2)
    jaxs = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_PROCESS_INDEX": "0", "JAX_PROCESS_COUNT": "4"}
    assert find_place(jaxs) == Place(address="a:1", index=0, count=4)
    slurm = {
        "SLURM_STEP_NUM_TASKS": "16",
        "SLURM_STEP_NODELIST": "gpu[03-04]",
        "SLURM_JOB_ID": "7",
        "SLURM_PROCID": "9",
    }
    node = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7", "SLURM_LOCALID": "1"}
    assert find_place(slurm | node) == Place(address="gpu03:20014", index=9, count=16, local_device=1)
    assert find_place(slurm | {"CUDA_VISIBLE_DEVICES": "1"}) == Place(address="gpu03:20014", index=9, count=16)
    gke = {"TPU_WORKER_HOSTNAMES": "w0,w1,w2,w3", "TPU_WORKER_ID": "2"}
    assert find_place(gke) == Place(address="w0:8700", index=2, count=4)
    two = {"MEGASCALE_COORDINATOR_ADDRESS": "s0:8080", "MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}
    assert find_place(gke | two) == Place(address="s0:8700", index=6, count=8)
    assert find_place({}) is None
    with pytest.raises(
        ValueError, match=r"SLUICE_COORDINATOR is set, SLUICE_PROCESS_COUNT, SLUICE_PROCESS_INDEX is not"
    ):
        find_place({"SLUICE_COORDINATOR": "a:1"})
    assert [first_host(nodes) for nodes in ("n1", "n1,n2", "n[007-9,12],m", "n[1,3]-ib")] == [
        "n1",
        "n1",
        "n007",
        "n1-ib",
    ]


def test_a_place_that_is_none_is_refused():
    """It would wait for the others, and they for it."""
    with pytest.raises(ValueError, match=r"this is process 2 of 2, by the variables of its machine \(TPU_WORKER_ID"):
        find_place({"TPU_WORKER_HOSTNAMES": "w0,w1", "TPU_WORKER_ID": "2"})


def test_a_worker_that_cannot_learn_its_place_does_not_run_alone(monkeypatch):
    """The others of its slice would wait for it."""
    answers = []

    def answer(request, timeout):
        said = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(said, Exception):
            raise said
        return io.BytesIO(said.encode())

    def code(number):
        return urllib.error.HTTPError("http://m", number, "no", {}, None)

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    for said, expected in (
        ([code(503), TimeoutError("timed out"), "7"], "7"),  # busy at boot
        ([code(404)], ""),
        ([urllib.error.URLError(socket.gaierror("no such name"))], ""),  # a machine of another kind
    ):
        answers[:] = said
        assert distributed._metadata("agent-worker-number") == expected
    answers[:] = [urllib.error.URLError(TimeoutError("timed out"))]
    with pytest.raises(OSError, match=r"does not say of which slice .*: start again, or set TPU_SKIP_MDS_QUERY=1"):
        distributed._metadata("agent-worker-number")


def test_limits_must_be_positive():
    with pytest.raises(ValueError, match=r"meeting\.silent=0.0: expected seconds above 0"):
        MeetingConfig(silent=0.0)
