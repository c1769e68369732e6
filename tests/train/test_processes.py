"""Real processes on this machine: killed, stopped, more or fewer of them, the run is as if nothing had happened."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from data.manifest import read_manifest
from launch.local import run
from models.command import use_compile_cache
from tests.train.mishaps import bits, recorded, write_config
from tests.train.tiny import losses
from train.export import run as export
from train.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.long]
ROOT = Path(__file__).parents[2]
# A machine that has much else to do keeps a process from its turn for seconds, and from beginning for minutes.
LIMITS = ("train.meeting.silent=60.0", "train.meeting.stall=300.0", "train.meeting.join=300.0")


class Runs:
    """Runs of the tiny config in one folder, with a cache of compiled programs that they share."""

    def __init__(self, folder: Path, corpus: Path):
        self.folder, self.command = folder, write_config(folder, corpus)

    def start(self, name: str, processes: int, *overrides: str, mishap: str = "", restarts: int = 0, **more: str):
        """(exit code, run folder). mishap: see tests/train/mishaps.py."""
        variables = {"PYTHONPATH": f"{ROOT}:{self.folder}", "MISHAP_DONE": str(self.folder / f"{name}.done")}
        if mishap:
            variables["MISHAP"] = mishap
        settings = [f"run_dir={self.folder / name}", f"train.compilation_cache={str(self.folder / 'cache')!r}", *LIMITS]
        settings.append(f"mesh.fsdp={processes}")
        here = Path.cwd()
        os.chdir(self.folder)
        try:
            code = run(
                [*self.command, *settings, *overrides],
                processes=processes,
                devices=1,
                restarts=restarts,
                environment=variables | more,
                grace=10.0,
            )
        finally:
            os.chdir(here)
        return code, self.folder / name

    def left_over(self, name: str) -> str:
        """Processes of a run that are still there, zombies too."""
        shown = subprocess.run(["ps", "-eo", "pid,ppid,stat,args"], capture_output=True, text=True).stdout.splitlines()
        ours = [line for line in shown if str(self.folder / name) in line]
        zombies = [line for line in shown if line.split()[1] == str(os.getpid()) and line.split()[2].startswith("Z")]
        return "\n".join(ours + zombies)


def last_line(folder: Path) -> dict:
    """The final evaluation, but for what is timed."""
    return {
        name: value for name, value in read_metrics(folder)[-1].items() if not name.startswith(("time", "throughput"))
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory, corpus):
    yield Runs(tmp_path_factory.mktemp("processes"), corpus)
    use_compile_cache("")


@pytest.fixture(scope="module")
def two(runs):
    """Losses of an uninterrupted run of two processes."""
    code, folder = runs.start("two", 2)
    assert code == 0
    return losses(folder)


def test_one_killed_of_two_is_started_again_and_the_losses_are_the_same_to_the_last_bit(runs, two, capfd):
    code, folder = runs.start("killed", 2, mishap="kill:7:1", restarts=1)
    assert code == 0 and bits(losses(folder)) == bits(two)
    said = capfd.readouterr()
    assert "process 1 was ended by SIGKILL" in said.err and "starting all 2 processes again (1 of 1)" in said.err
    assert "error: process 1 is gone; process 0: step " in said.out
    assert not runs.left_over("killed")
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints", "config.json", "metrics.jsonl", "report.html", "run.lock", "samples.txt", "stacks", "tokenizer",
    ]  # fmt: skip


def test_sigterm_to_one_of_two_saves_both_at_the_same_step(runs, two, capfd):
    code, folder = runs.start("asked", 2, "checkpoint.every_steps=100", mishap="term:5:1")
    assert code == 75
    stopped = [line for line in capfd.readouterr().out.splitlines() if "stopped at step" in line]
    assert len(stopped) == 1 and stopped[0].startswith("[0] ")
    (saved,) = (folder / "checkpoints").iterdir()
    assert f"stopped at step {saved.name} of 12, saved" in stopped[0] and 5 <= int(saved.name) < 12
    assert runs.start("asked", 2)[0] == 0 and bits(losses(folder)) == bits(two)


def test_sigkill_in_the_middle_of_a_save_leaves_the_one_before(runs, two, capfd):
    code, folder = runs.start("saving", 2, mishap="save:8:0")
    assert code == 75
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names[0] == "4" and len(names) <= 2 and all("tmp" in name for name in names[1:])
    assert runs.start("saving", 2)[0] == 0
    assert ", going on after step 4" in capfd.readouterr().out
    assert bits(losses(folder)) == bits(two)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["12", "8"]


def test_the_final_evaluation_and_the_export_survive_a_kill(runs, two, capfd):
    code, folder = runs.start("final", 2, mishap="final:12:1")
    assert code == 75 and (folder / "checkpoints" / "12").exists()
    assert not (folder / "samples.txt").exists() and not (folder / "report.html").exists()
    steps = losses(folder)
    assert runs.start("final", 2)[0] == 0  # trains nothing more: it evaluates, samples and reports
    assert steps == losses(folder) and bits(steps) == bits(two)
    whole = runs.folder / "two"
    assert last_line(folder) == last_line(whole)
    assert (folder / "samples.txt").read_text() == (whole / "samples.txt").read_text()
    capfd.readouterr()
    assert runs.start("final", 2)[0] == 0 and "held-out bits/byte" in capfd.readouterr().out  # finished: says so
    export(["--checkpoint", str(folder), "--format", "hf", "--out", str(runs.folder / "exported")])
    assert (runs.folder / "exported" / "model.safetensors").exists()


def test_of_two_that_start_anew_process_0_builds_the_dataset_and_the_other_waits(runs, two, corpus, capfd):
    dataset = runs.folder / "built anew"
    code, folder = runs.start("fresh", 2, f"data.path={str(dataset)!r}", SAYS_WAITING="0.4")
    assert code == 0 and bits(losses(folder)) == bits(two)
    assert read_manifest(dataset)["key"] == read_manifest(corpus / "dataset")["key"]
    lines = capfd.readouterr().out.splitlines()
    waiting = [line for line in lines if "waiting for process 0 to build the dataset" in line]
    assert waiting and all(line.startswith("[1] process 1: ") for line in waiting)
    assert any(line.endswith(")") for line in waiting)  # with the last line of the build's log


def test_one_that_is_stopped_is_named_and_the_run_ends(runs, capfd):
    """Process 0 does not wait for the stall of its step: silence is a limit of its own, and the first to be reached."""
    code, folder = runs.start("stopped", 2, "train.meeting.silent=20.0", mishap="stop:5:1")
    said = capfd.readouterr().out
    assert code == 75 and "error: process 1 fell silent; process 0: step " in said
    assert (folder / "stacks" / "process-0.txt").exists() and not runs.left_over("stopped")


def test_one_with_another_config_is_named(runs, corpus):
    port = "29871"
    outputs = []
    for index, rate in enumerate(("0.02", "0.01")):
        place = {"SLUICE_COORDINATOR": f"127.0.0.1:{port}", "SLUICE_PROCESS_INDEX": str(index)}
        place |= {"SLUICE_PROCESS_COUNT": "2"}
        command = [*runs.command, f"run_dir={runs.folder / 'differs'}", f"optimizer.learning_rate={rate}"]
        environment = os.environ | place | {"PYTHONPATH": f"{ROOT}:{runs.folder}", "JAX_PLATFORMS": "cpu"}
        outputs.append(
            subprocess.Popen(
                command, cwd=runs.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    for process in outputs:
        said = process.communicate(timeout=600)[0]
        assert process.returncode == 1
        assert "process 1 has optimizer.learning_rate=0.01, process 0 has 0.02: start all processes with" in said


def test_on_1_2_4_and_1_processes_the_stream_and_the_losses_are_those_of_one(runs):
    settings = ("train.num_steps=100", "loader.weights=(('prose', 1.0), ('code', 3.0))", "checkpoint.every_steps=50")
    assert runs.start("whole", 1, *settings, RECORD=str(runs.folder / "fed whole"))[0] == 0
    for processes, mishap in ((1, "term:25:0"), (2, "term:50:1"), (4, "term:75:3"), (1, "")):
        marker = runs.folder / "parts.done"
        marker.unlink(missing_ok=True)
        code, folder = runs.start("parts", processes, *settings, mishap=mishap, RECORD=str(runs.folder / "fed parts"))
        assert code == (75 if mishap else 0)
    want, got = recorded(runs.folder / "fed whole"), recorded(runs.folder / "fed parts")
    assert sorted(got) == sorted(want) == list(range(1, 101))
    for step, batch in want.items():
        for name, array in batch.items():
            assert array.tobytes() == got[step][name].tobytes(), (step, name)
    np.testing.assert_allclose(list(losses(folder).values()), list(losses(runs.folder / "whole").values()), rtol=1e-5)
