"""What brings a Ray cluster up is written down (golden), is sound shell, and says what is missing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launch import ray_cluster

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
BUCKET = ["--config", "configs/quickstart.py", "--hosts", "3", "data.path=gs://bucket/x", "data.work=/mnt/shared/x"]
COMMON = ["--config", "configs/quickstart.py", "--hosts", "3", "data.path=/data/a b", 'name=it\'s "x" $HOME']
TARGETS = {
    "tpu-vm": ["--tpu", "my-tpu", "--zone", "us-east5-b", "--project", "p"],
    "slurm": ["--cpus", "64", "--setup", "source .venv/bin/activate", "--sbatch=--partition=cpu"],
    "gke": ["--image", "registry/sluice:1", "--volume", "claim"],
}


@pytest.fixture(autouse=True)
def same_everywhere(monkeypatch: pytest.MonkeyPatch):
    """In the root of the repository, with an interpreter that every machine has."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "executable", "python3")


def dry_run(target: str, common: list[str], capsys: pytest.CaptureFixture) -> str:
    assert ray_cluster.run([target, *TARGETS[target], *common, "--dry-run"]) == 0
    return capsys.readouterr().out.replace(str(ROOT), "/repository")


@pytest.mark.parametrize(
    ("name", "common"),
    [*((target, COMMON) for target in TARGETS), ("tpu-vm-bucket", BUCKET)],
)
def test_the_dry_run_is_the_golden_text_and_sound_shell(name: str, common: list[str], capsys: pytest.CaptureFixture):
    text = dry_run(name.removesuffix("-bucket"), common, capsys)
    path = GOLDEN / f"ray-{name}.txt"
    if os.environ.get("SLUICE_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert done.returncode == 0 and not done.stderr


def test_the_driver_gets_its_overrides_whole(tmp_path: Path):
    """The command line in every generated file, read by a shell, has the overrides as they were given."""
    seen = tmp_path / "seen.json"
    stand_in = tmp_path / "python3"
    interpreter = os.path.realpath("/proc/self/exe")
    record = f"import json, sys\njson.dump(sys.argv, open({str(seen)!r}, 'w'))\n"
    stand_in.write_text(f"#!{interpreter}\n{record}")
    stand_in.chmod(0o755)
    arguments = ray_cluster.parse_arguments(["gke", *TARGETS["gke"], *COMMON])
    entrypoint = ray_cluster.ray_job(arguments)["spec"]["entrypoint"]
    paths = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", entrypoint], env=paths, check=True)
    assert json.loads(seen.read_text())[1:] == [
        "-m", "data.main", "--config", "configs/quickstart.py", 'data.engine=Ray(address="auto")', *COMMON[4:]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["tpu-vm", *COMMON], "tpu-vm needs --tpu and --zone"),
        (["gke", *COMMON], "gke needs --image and --volume"),
        (["slurm", *COMMON[:4]], "give data.path=..., a folder that all machines see"),
        (["slurm", *COMMON[:2], "--hosts", "0", "data.path=/x"], "--hosts 0: expected 1 or more"),
        (["slurm", *BUCKET[:-1]], "data.path=gs://bucket/x keeps the dataset, but 3 machines work on it in one folder"),
        (["slurm", *BUCKET[:-1]], "give data.work=..., such as data.work=/mnt/shared/x"),
        (["slurm", *BUCKET[:-1], "data.work=None"], "give data.work=..., such as data.work=/mnt/shared/x"),
        (["gke", *TARGETS["gke"], *BUCKET], "data.work=/mnt/shared/x is not on the volume, which pods see at /data"),
        (["slurm", *COMMON[:4], "data.path=datasets/x"], "data.path=datasets/x: each machine has a working folder of"),
    ],
)
def test_what_is_missing_is_said(argv: list[str], line: str):
    with pytest.raises(ValueError, match=re.escape(line)):
        ray_cluster.run([*argv, "--dry-run"])


def test_one_machine_needs_no_folder_besides_its_bucket(capsys: pytest.CaptureFixture):
    assert ray_cluster.run(["slurm", *BUCKET[:2], "--hosts", "1", BUCKET[4], "--dry-run"]) == 0
    assert "data.path=gs://bucket/x" in capsys.readouterr().out
