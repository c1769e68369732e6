"""What is checked before a run is compiled: each finding names the process and what to change."""

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from tests.train.tiny import run_config, train_config
from train import distributed, main, preflight
from train.meeting import Place, Processes
from train.preflight import GIB, check_devices, check_memory, check_output, commit, run_folder_held
from train.roster import MeetingConfig

ROOT = Path(__file__).parents[2]


class Two(Processes):
    """One of two processes without a connection; the other gives `answers` by name, or the same as this one."""

    def __init__(self, index: int = 0, **answers: Any):
        super().__init__(Place(address="a:1", index=index, count=2))
        self.answers = answers

    def exchange(self, name: str, value: Any, **_: Any) -> list[Any]:
        both = [value, value]
        both[1 - self.index] = self.answers.get(name.replace(" ", "_"), value)
        return both


def test_folders_that_all_can_write_and_see_are_left_empty(tmp_path):
    check_output(Two(), {"run_dir": str(tmp_path / "a"), "checkpoint.path": str(tmp_path / "b")})
    assert not list((tmp_path / "a").iterdir()) and not list((tmp_path / "b").iterdir())


def test_a_folder_that_cannot_be_written_is_named_with_its_setting(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"process 1 cannot write to run_dir=.*/file/run \("):
        check_output(Two(index=1, write_test=[]), {"run_dir": str(tmp_path / "file" / "run")})
    theirs = ["process 1 cannot write to run_dir=x (no room)"]
    with pytest.raises(ValueError, match=r"process 1 cannot write to run_dir=x"):
        check_output(Two(write_test=theirs), {"run_dir": str(tmp_path / "a")})


def test_where_checkpoints_go_all_see_what_process_0_wrote(tmp_path):
    run_dir, checkpoints = str(tmp_path / "a"), tmp_path / "b"
    with pytest.raises(ValueError, match=r"process 1 does not see what process 0 wrote to run_dir="):
        check_output(Two(index=1, token="7", write_test=[]), {"run_dir": run_dir})
    checkpoints.mkdir()
    (checkpoints / ".write-test-0").write_text("7")  # run_dir is then one of each host's own
    check_output(Two(index=1, token="7"), {"run_dir": run_dir, "checkpoint.path": str(checkpoints)})
    (checkpoints / ".write-test-0").write_text("of an earlier run")
    with pytest.raises(ValueError, match=r"wrote to checkpoint\.path=.*a file system that all hosts share"):
        check_output(Two(index=1, token="7"), {"run_dir": run_dir, "checkpoint.path": str(checkpoints)})


HOLDS = """
import sys, time
from pathlib import Path
from tests.train.tiny import run_config
from train.meeting import Processes
from train.preflight import run_folder_held
with run_folder_held(Processes(), run_config(Path(sys.argv[1]), run_dir=sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_folder_is_one_runs_at_a_time_until_its_process_ends(corpus, tmp_path, capsys):
    patient = train_config(meeting=MeetingConfig(join=30.0))
    config = run_config(corpus, run_dir=str(tmp_path), train=patient)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(corpus), str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        hasty = replace(config, train=train_config(meeting=MeetingConfig(join=0.1)))
        with pytest.raises(ValueError, match=rf"is another run's, process {other.pid} on .* did not end within 0 s"):
            run_folder_held(Processes(), hasty).__enter__()
        threading.Timer(1.0, other.kill).start()  # kill -9: nothing of its own takes the lock away
        with run_folder_held(Processes(), config), run_folder_held(Two(index=1), hasty):
            assert "waiting for it to end" in capsys.readouterr().out


def test_devices_that_never_answer_are_no_long_step(corpus, tmp_path, monkeypatch):
    """A TPU's runtime waits in silence for the hosts of its slice: that ends after `stall`, not ten times that."""
    patience = []

    def hang(processes):
        patience.append((processes._state["doing"], processes._state["patience"]))
        raise ValueError("no device")

    monkeypatch.setattr(distributed, "start_jax", hang)
    config = run_config(corpus, run_dir=str(tmp_path / "run"), train=train_config(compilation_cache=""))
    with pytest.raises(ValueError, match="no device"):
        main.train_together(config, None)
    assert patience == [("finding its devices", 1.0)]


def test_other_devices_are_named_with_both_values():
    here = jax.local_devices()
    kind = here[0].device_kind
    check_devices(Two())
    with pytest.raises(ValueError, match=f"process 1 has devices=1, process 0 has {len(here)}: start all processes"):
        check_devices(Two(devices={"devices": 1, "device kind": kind}))
    with pytest.raises(ValueError, match=f"process 1 has device kind='other', process 0 has {kind!r}"):
        check_devices(Two(devices={"devices": len(here), "device kind": "other"}))


@pytest.mark.parametrize(
    ("platform", "stats", "state", "rest", "says"),
    [
        ("gpu", {"bytes_limit": 10 * GIB}, 6, 3, None),
        (
            "gpu",
            {"bytes_limit": 10 * GIB},
            6,
            5,
            "warning: about 11.0 GiB are expected on each device, and it has 10.0",
        ),
        ("gpu", None, 6, 50, None),  # not known
        ("cpu", {"bytes_limit": 1}, 6, 5, None),  # shared with the rest of the host
    ],
)
def test_memory_that_is_expected_is_told(monkeypatch, platform, stats, state, rest, says):
    device = SimpleNamespace(platform=platform, memory_stats=lambda: stats)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    found = check_memory({"parameters": state * GIB, "activations saved": rest * GIB})
    assert (found is None) if says is None else found.startswith(says)


def test_a_state_that_does_not_fit_is_refused(monkeypatch):
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 10 * GIB})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    with pytest.raises(ValueError, match=r"take 12\.0 GiB on each device, and it has 10\.0: raise mesh\.fsdp"):
        check_memory(dict.fromkeys(("parameters", "frozen", "optimizer", "EMA"), 3 * GIB))


def test_the_commit_of_packed_code_is_what_the_launcher_says(monkeypatch, tmp_path):
    """Even where it lies inside of a repository, which is then of something else."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "--quiet"], ["commit", "--quiet", "--allow-empty", "-m", "another"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setenv("SLUICE_COMMIT", "0123abc")
    assert commit() != "0123abc"  # of the repository that this code lies in
    (tmp_path / "code" / "train").mkdir(parents=True)
    monkeypatch.setattr(preflight, "__file__", str(tmp_path / "code" / "train" / "preflight.py"))
    assert commit() == "0123abc"
    monkeypatch.delenv("SLUICE_COMMIT")
    assert commit() is None
