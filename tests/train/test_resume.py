"""A run that is stopped in any way goes on as if it had not been: every later loss is the same to the last bit."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.train.tiny import losses, run_config, train_config
from train.loop import STOPPED, train

ROOT = Path(__file__).parents[2]


def bits(values):
    return {step: float(value).hex() for step, value in values.items()}


def test_sigterm_saves_and_the_same_command_goes_on_bit_by_bit(corpus, tmp_path, own_mesh, capsys):
    config = run_config(corpus, run_dir=str(tmp_path / "whole"))
    assert train(config, corpus / "dataset") == 0
    stopped = run_config(corpus, run_dir=str(tmp_path / "stopped"))

    def stop_after_a_few_steps():
        path = tmp_path / "stopped" / "metrics.jsonl"
        while not path.exists() or path.read_bytes().count(b"\n") < 5:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop_after_a_few_steps)
    stopper.start()
    assert train(stopped, corpus / "dataset") == STOPPED == 75
    stopper.join()
    before = losses(tmp_path / "stopped")
    assert 5 <= len(before) < 12
    assert train(stopped, corpus / "dataset") == 0
    assert bits(losses(tmp_path / "stopped")) == bits(losses(tmp_path / "whole"))
    assert list(losses(tmp_path / "stopped")) == list(range(1, 13))

    capsys.readouterr()
    written = (tmp_path / "stopped" / "metrics.jsonl").read_bytes()
    assert train(stopped, corpus / "dataset") == 0  # finished: says so, and touches nothing
    assert capsys.readouterr().out.startswith("held-out bits/byte")
    with pytest.raises(ValueError, match=r"/stopped has come to step 12, beyond train\.num_steps=6: raise it or"):
        train(replace(stopped, train=train_config(num_steps=6)), corpus / "dataset")
    assert (tmp_path / "stopped" / "metrics.jsonl").read_bytes() == written


def start(folder: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "train.main", "--config", "tiny_config.py", *overrides]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_kill_9_at_any_step_then_the_same_command_gives_the_same_losses_bit_by_bit(corpus, tmp_path):
    lines = ["from pathlib import Path", "from tests.train.tiny import run_config", "def get_config():"]
    lines.append(f"    return run_config(Path({str(corpus)!r}))")
    (tmp_path / "tiny_config.py").write_text("\n".join(lines))
    options = ["train.num_steps=60", "checkpoint.every_steps=7"]
    whole = start(tmp_path, "run_dir=whole", *options)
    assert whole.wait() == 0, whole.stdout.read()
    want = bits(losses(tmp_path / "whole"))
    assert list(want) == list(range(1, 61))

    for lines_before_the_kill in (3, 31):  # before the first checkpoint, and after some
        name = f"killed{lines_before_the_kill}"
        killed = start(tmp_path, f"run_dir={name}", *options)
        path = tmp_path / name / "metrics.jsonl"
        while killed.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= lines_before_the_kill):
            time.sleep(0.002)
        assert killed.poll() is None, killed.stdout.read()
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert len(losses(tmp_path / name)) < 60
        resumed = start(tmp_path, f"run_dir={name}", *options)
        assert resumed.wait() == 0, resumed.stdout.read()
        assert bits(losses(tmp_path / name)) == want

    def last_line(name):
        line = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])
        return {name: value for name, value in line.items() if "throughput" not in name}

    assert last_line("killed31") == last_line("whole")  # held-out bits per byte too
