"""The local pool: order, errors that name the shard, workers that die, workers that end with their parent."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from data.engine import MAX_ATTEMPTS, LocalPool, ShardError


def square(number: int) -> int:
    return number * number


def slow_square(number: int) -> int:
    time.sleep(0.02 * (5 - number))
    return number * number


def process_id(_: int) -> int:
    return os.getpid()


def fail_on_two(number: int) -> int:
    if number == 2:
        raise ValueError("two is not\nwelcome")
    return number


def die_once(number: int, *, folder: Path) -> int:
    marker = folder / str(number)
    if number == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die_always(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def disk_full(number: int) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def flaky(number: int, *, folder: Path) -> int:
    tries = len(list(folder.glob(f"{number}-*")))
    (folder / f"{number}-{tries}").touch()
    if tries < MAX_ATTEMPTS - 1:
        raise OSError(errno.EIO, "Input/output error")
    return number


def sleep_in_worker(_: int, *, folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(60)


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_shard_order(workers: int) -> None:
    assert LocalPool(workers=workers).map_shards(slow_square, range(5), label="squares") == [0, 1, 4, 9, 16]
    assert LocalPool(workers=workers).map_shards(square, [], label="nothing") == []


def test_one_worker_runs_inline_and_more_do_not() -> None:
    assert set(LocalPool(workers=1).map_shards(process_id, range(3), label="pid")) == {os.getpid()}
    assert os.getpid() not in LocalPool(workers=2).map_shards(process_id, range(3), label="pid")


def test_a_session_keeps_its_workers_and_ends_them() -> None:
    with LocalPool(workers=2).session() as engine:
        first = set(engine.map_shards(process_id, range(8), label="pid"))
        assert engine.map_shards(square, range(4), label="squares") == [0, 1, 4, 9]
        assert set(engine.map_shards(process_id, range(8), label="pid")) | first == first
    for pid in first:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_shard_is_named_in_one_line(workers: int) -> None:
    with pytest.raises(ShardError) as error:
        LocalPool(workers=workers).map_shards(fail_on_two, range(5), label="numbers")
    assert str(error.value) == "numbers: shard 3 of 5 (2): two is not welcome"
    assert "fail_on_two" in error.value.details


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_said_at_once(workers: int) -> None:
    with pytest.raises(ShardError, match=r"the disk is full .* free some space") as error:
        LocalPool(workers=workers).map_shards(disk_full, range(3), label="numbers")
    assert error.value.errno == errno.ENOSPC


@pytest.mark.parametrize("workers", [1, 2])
def test_an_operating_system_error_is_tried_again(workers: int, tmp_path: Path) -> None:
    fn = partial(flaky, folder=tmp_path)
    assert LocalPool(workers=workers).map_shards(fn, range(3), label="flaky") == [0, 1, 2]
    assert len(list(tmp_path.iterdir())) == 3 * MAX_ATTEMPTS


def test_a_killed_worker_is_replaced_and_its_shard_done_again(tmp_path: Path) -> None:
    fn = partial(die_once, folder=tmp_path)
    assert LocalPool(workers=2).map_shards(fn, range(6), label="die") == list(range(6))


def test_a_shard_that_always_kills_its_worker_is_named() -> None:
    with pytest.raises(ShardError, match=r"die: shard 2 of 6 \(1\): the worker was killed by SIGKILL"):
        LocalPool(workers=2).map_shards(die_always, range(6), label="die")


def test_a_function_that_workers_cannot_import_is_refused() -> None:
    with pytest.raises(ValueError, match="must pickle"):
        LocalPool(workers=2).map_shards(lambda number: number, range(3), label="lambda")


def test_a_function_of_the_script_itself_is_refused_by_name(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from data.engine import LocalPool\n"
        "def double(number):\n    return 2 * number\n"
        "if __name__ == '__main__':\n    LocalPool(workers=2).map_shards(double, range(3), label='doubling')\n"
    )
    paths = {**os.environ, "PYTHONPATH": "."}
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, env=paths)
    assert run.stderr.strip().splitlines()[-1].startswith("ValueError: doubling: 'double' lives in the script")


def test_settings_may_speak_of_main() -> None:
    prefixed = partial(_prefixed, prefix="__main__ ")
    assert LocalPool(workers=2).map_shards(prefixed, ["a", "b"], label="prefix") == ["__main__ a", "__main__ b"]


def _prefixed(text: str, prefix: str) -> str:
    return prefix + text


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "from functools import partial; from pathlib import Path; from data.engine import LocalPool\n"
        "from tests.data.test_engine import sleep_in_worker\n"
        f"fn = partial(sleep_in_worker, folder=Path({str(tmp_path)!r}))\n"
        "LocalPool(workers=2).map_shards(fn, range(2), label='sleep')\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        _until(lambda: len(list(tmp_path.iterdir())) == 2)
        workers = [int(path.name) for path in tmp_path.iterdir()]
        assert parent.pid not in workers
    finally:
        parent.kill()
        parent.wait()
    _until(lambda: not any(_alive(worker) for worker in workers))


def test_workers_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        LocalPool(workers=0)


def _alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def _until(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the time limit"
        time.sleep(0.05)
