"""What a launch would do is written down (golden); what it does, stand-ins for the cloud's commands record."""

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from launch import main as launch_main
from launch import steps, tpu_vm
from launch.gke import literal, yaml_lines
from launch.job import Job, worker_script
from launch.machines import CHIPS, Machine, parse_machine
from launch.pack import code_files, pack
from launch.steps import Command, File, Together, execute, script
from launch.sweep import job_label, read_sweep, sweep_jobs

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
OVERRIDES = ["data.sources.web.paths=('a b/*.jsonl',)", 'name=it\'s "8B" $HOME']  # spaces, both quotes, a variable
COMMON = ["--config", "configs/pretrain_1b.py", "--env", "NOTE=two words"]
TARGETS = {
    "local": ["local", "--processes", "2", "--devices", "4"],
    "tpu-vm": ["tpu-vm", "--tpu", "my-tpu", "--zone", "us-east5-b", "--datasets", "gs://b/d", "checkpoint.path=gs://b/c",
               "--machine", "v6e:4x4"],
    "queued-resource": [
        "queued-resource", "--bucket", "gs://b/x", "--spot", "--zone", "us-west4-a", "--machine", "v5e:4x4",
        "--slices", "2", "--cache", "gs://b/cache", "checkpoint.path=gs://b/c",
    ],
    "slurm": ["slurm", "--machine", "h100:16", "--partition", "gpu", "--setup", "source .venv/bin/activate"],
    "gke": ["gke", "--machine", "v5p:4x4x4", "--slices", "2", "--image", "registry/sluice:1",
            "checkpoint.path=gs://b/c"],
    "gke-gpu": ["gke", "--machine", "h100:16", "--image", "registry/sluice:1", "--ready", "--spot", "--volume", "claim",
                "run_dir=/data/runs/1b"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def same_everywhere(monkeypatch: pytest.MonkeyPatch):
    """In the root of the repository, at a commit and with an interpreter that every machine has."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(launch_main, "code_commit", lambda: "0123abc")
    monkeypatch.setattr(sys, "executable", "python3")
    monkeypatch.setattr(steps, "PAUSE", 0.01)


@pytest.mark.parametrize("name", TARGETS)
def test_the_dry_run_of_every_target_is_the_golden_text(name: str, capsys: pytest.CaptureFixture):
    before = sorted((ROOT / "runs").glob("launch/*"))
    assert launch_main.run([*TARGETS[name], *COMMON, *OVERRIDES, "--dry-run"]) == 0
    text = capsys.readouterr().out.replace(str(ROOT), "/repository")
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("SLUICE_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()
    assert sorted((ROOT / "runs").glob("launch/*")) == before  # a dry run makes nothing


@pytest.mark.parametrize("name", TARGETS)
def test_the_scripts_of_every_target_are_sound(name: str, capsys: pytest.CaptureFixture):
    launch_main.run([*TARGETS[name], *COMMON, *OVERRIDES, "--dry-run"])
    done = subprocess.run(["bash", "-n"], input=capsys.readouterr().out, text=True, capture_output=True)
    assert done.returncode == 0 and not done.stderr


STAND_IN = '''#!{python}
"""A stand-in: writes down how it was called and does the little that the launch needs of it."""
import json, os, pathlib, shutil, subprocess, sys

name, argv, home = pathlib.Path(sys.argv[0]).name, sys.argv[1:], pathlib.Path(os.environ["STAND_IN"])
with open(home / "calls.jsonl", "a") as calls:
    calls.write(json.dumps([name, *argv]) + "\\n")
if name == "gcloud" and "scp" in argv:
    where = argv.index("scp")
    target = argv[where + 3].partition(":")[2]
    for worker in range(len(list(home.glob("worker-*")))):
        for file in argv[where + 1 : where + 3]:
            shutil.copy(file, home / f"worker-{{worker}}" / target)
elif name == "gcloud" and "ssh" in argv:
    worker = next(item for item in argv if item.startswith("--worker=")).partition("=")[2]
    command = next(item for item in argv if item.startswith("--command=")).partition("=")[2]
    folder = home / f"worker-{{worker}}"
    folder.mkdir(exist_ok=True)
    lost = home / f"lose-{{worker}}"
    if lost.exists() and "start" in command:
        lost.unlink()
        variables = os.environ | {{"W": worker}}
        subprocess.Popen(["bash", "-c", command], cwd=folder, stdout=subprocess.DEVNULL, env=variables)
        sys.exit(255)
    sys.exit(subprocess.run(["bash", "-c", command], cwd=folder, env=os.environ | {{"W": worker}}).returncode)
elif name == "gcloud" and "describe" in argv:
    states = (home / "states").read_text().split()
    print(states[0])
    (home / "states").write_text(" ".join(states[1:]))
elif name == "gcloud" and "cat" in argv and not (home / "states").read_text().strip():
    print("0\\n3")
elif name == "python3" and argv[:2] == ["-m", "venv"]:
    folder = pathlib.Path(argv[2]) / "bin"
    folder.mkdir(parents=True)
    for tool in ("python3", "pip"):
        shutil.copy(sys.argv[0], folder / tool)
elif name == "python3" and argv[:2] == ["-m", "train.main"]:
    print("training with", os.environ.get("NOTE"), "of", os.environ.get("SLUICE_COMMIT"))
    codes = home / f"codes-{{os.environ.get('W', '')}}"
    left = codes.read_text().split() if codes.exists() else ["0"]
    codes.write_text(" ".join(left[1:] or ["0"]))
    sys.exit(int(left[0]))
elif name == "python3" and argv[:2] == ["-m", "launch.pack"]:
    sys.exit(subprocess.run([os.environ["REAL_PYTHON"], *argv]).returncode)
elif name == "srun":
    sys.exit(subprocess.run(argv[next(i for i, a in enumerate(argv) if not a.startswith("--")) :]).returncode)
'''


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with spaces in its name, and every command of a cloud as a stand-in that records its calls there."""
    home = tmp_path / "a folder's home"
    commands = home / "bin"
    commands.mkdir(parents=True)
    for name in ("gcloud", "sbatch", "srun", "scontrol", "kubectl", "docker", "python3", "pip", "sudo", "lsof"):
        path = commands / name
        path.write_text(STAND_IN.format(python=os.path.realpath(sys.base_prefix + "/bin/python3")))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN", str(home))
    monkeypatch.setenv("REAL_PYTHON", os.path.realpath(sys.base_prefix + "/bin/python3"))
    monkeypatch.setenv("SLUICE_RESTART_SECONDS", "0")
    return home


def calls(home: Path, *beginning: str) -> list[list[str]]:
    """The recorded calls that begin with these words."""
    found = [json.loads(line) for line in (home / "calls.jsonl").read_text().splitlines()]
    return [call for call in found if call[: len(beginning)] == list(beginning)]


TRAINING = ["python3", "-m", "train.main", "--config", "configs/pretrain_1b.py", *OVERRIDES]


def test_a_tpu_vm_runs_the_job_on_every_worker_and_gathers_logs_and_exit_codes(
    stand_ins: Path, capfd: pytest.CaptureFixture
):
    files = stand_ins / "what's launched"
    (stand_ins / "codes-1").write_text("75 75 3 0")  # stopped twice, crashed once, then done
    (stand_ins / "codes-2").write_text("3 3 3 3")  # crashes every time
    (stand_ins / "lose-3").touch()  # its connection breaks once
    code = launch_main.run([*TARGETS["tpu-vm"], *COMMON, *OVERRIDES, "--files", str(files), "--restarts", "2"])
    assert code == 3
    told = capfd.readouterr().err
    for worker, exit_code in enumerate((0, 0, 3, 0)):
        log = files / "logs" / f"worker-{worker}.log"
        assert f"exit {exit_code:>3}  log {log}" in told
        assert "training with two words of 0123abc" in log.read_text()
    assert "connection lost" in told
    trained = calls(stand_ins, "python3", "-m", "train.main")
    expected = [*TRAINING[:5], "checkpoint.path=gs://b/c", *OVERRIDES]
    assert len(trained) == 1 + 4 + 3 + 1 and all(call == expected for call in trained)
    worker = stand_ins / "worker-0" / "sluice" / "pretrain-1b"
    assert (worker / "code" / "runs").resolve() == worker / "runs"  # outlives the next copy of the code
    assert len(calls(stand_ins, "gcloud", "storage", "rsync")) == 4  # the datasets, on every worker
    assert calls(stand_ins, "sudo", "lsof")  # chips that an earlier process holds are looked for
    assert (stand_ins / "worker-0" / "sluice" / "pretrain-1b" / "code" / "train" / "main.py").is_file()


def test_a_connection_that_breaks_before_the_start_leaves_no_worker_out(stand_ins: Path):
    """What lies there is of an earlier run: its exit code is not this one's."""
    gcloud = stand_ins / "bin" / "gcloud"
    (stand_ins / "there").mkdir()
    there = gcloud.rename(stand_ins / "there" / "gcloud")
    breaks = '[[ "$*" = *--worker=1*start* && ! -e "$STAND_IN/broken" ]] && touch "$STAND_IN/broken" && exit 255'
    gcloud.write_text(f'#!/bin/bash\n{breaks}\nexec {shlex.quote(str(there))} "$@"\n')
    gcloud.chmod(0o755)
    earlier = stand_ins / "worker-1" / "sluice" / "pretrain-1b"
    earlier.mkdir(parents=True)
    (earlier / "pid").write_text("99999999\n")
    (earlier / "exit_code").write_text("0\n")
    (stand_ins / "codes-1").write_text("3")
    files = ["--files", str(stand_ins / "files")]
    assert launch_main.run([*TARGETS["tpu-vm"], *COMMON, *files, "--restarts", "0"]) == 3
    assert len(calls(stand_ins, "python3", "-m", "train.main")) == 4


def test_the_earlier_processes_that_hold_the_chips_are_ended(stand_ins: Path):
    holder = subprocess.Popen(["sleep", "600"])
    sudo = stand_ins / "bin" / "sudo"
    look = f"kill -0 {holder.pid} 2>/dev/null && echo {holder.pid}"
    sudo.write_text(f'#!/bin/bash\n[ "$1" = lsof ] && {{ {look}; exit; }}\n"$@"\n')
    worker = stand_ins / "worker.sh"
    worker.write_text(worker_script(Job(name="one", config="c.py", machine=parse_machine("v5e:4x4"))))
    pack(ROOT, stand_ins / "code.tar.gz")
    running = subprocess.Popen(["bash", str(worker), "run"], stdout=subprocess.DEVNULL)
    try:
        assert holder.wait(timeout=20) == -15
        assert running.wait(timeout=30) == 0
    finally:
        holder.kill()
        running.kill()


def test_a_stopped_worker_saves_and_is_not_started_again(stand_ins: Path):
    python = stand_ins / "bin" / "python3"
    python.write_text(
        """#!/bin/bash
trap 'sleep 0.3; exit 75' TERM
touch "$STAND_IN/up"
for i in $(seq 200); do sleep 0.1; done
"""
    )
    folder = stand_ins / "worker"
    (folder / "venv" / "bin").mkdir(parents=True)
    shutil.copy(python, folder / "venv" / "bin" / "python3")
    (folder / "worker.sh").write_text(worker_script(Job(name="one", config="c.py", machine=parse_machine("v5e:4x4"))))
    pack(ROOT, folder / "code.tar.gz")
    started = subprocess.Popen(["bash", str(folder / "worker.sh"), "start"], stdout=subprocess.DEVNULL)
    try:
        for _ in range(300):
            if (stand_ins / "up").exists():
                break
            subprocess.run(["sleep", "0.1"])
        subprocess.run(["bash", str(folder / "worker.sh"), "stop"], check=True)
        assert started.wait(timeout=20) == 75
    finally:
        started.kill()
    assert (folder / "exit_code").read_text() == "75\n"


def test_another_job_of_the_machine_saves_and_ends_before_this_one_begins(stand_ins: Path):
    """Its worker would end this one's run for the chips, and this one's worker its run, for ever."""
    pack(ROOT, stand_ins / "code.tar.gz")
    started = []
    try:
        for name in ("first", "second"):
            folder = stand_ins / name
            (folder / "venv" / "bin").mkdir(parents=True)
            python = folder / "venv" / "bin" / "python3"
            up = shlex.quote(str(stand_ins / f"{name} is up"))
            until = f"trap 'exit 75' TERM; touch {up}; for i in $(seq 200); do sleep 0.1; done" if not started else ""
            python.write_text(f"#!/bin/bash\n{until}\n")
            python.chmod(0o755)
            shutil.copy(stand_ins / "code.tar.gz", folder)
            job = Job(name=name, config="c.py", machine=parse_machine("v5e:4x4"))
            (folder / "worker.sh").write_text(worker_script(job))
            command = ["bash", str(folder / "worker.sh"), "start"]
            started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
            for _ in range(300):
                if (stand_ins / "first is up").exists():
                    break
                subprocess.run(["sleep", "0.1"])
        assert [process.wait(timeout=20) for process in started] == [75, 0]
    finally:
        for process in started:
            process.kill()


@pytest.mark.parametrize(("failures", "code"), [(2, 0), (9, 1)])
def test_packages_that_do_not_come_at_once_are_asked_for_again(stand_ins: Path, failures: int, code: int):
    folder = stand_ins / "worker"
    (folder / "venv" / "bin").mkdir(parents=True)
    fails = f'echo >> "$STAND_IN/tries"; [ "$(wc -l < "$STAND_IN/tries")" -gt {failures} ]'
    for name, text in (("python3", ""), ("pip", fails)):
        (folder / "venv" / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / "venv" / "bin" / name).chmod(0o755)
    (folder / "worker.sh").write_text(worker_script(Job(name="one", config="c.py", machine=parse_machine("v5e:4x4"))))
    pack(ROOT, folder / "code.tar.gz")
    done = subprocess.run(["bash", str(folder / "worker.sh"), "start"], capture_output=True, text=True, timeout=60)
    assert done.returncode == code and "(try 2 of 5)" in done.stdout


def test_a_worker_that_is_stopped_between_two_runs_starts_no_other(stand_ins: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLUICE_RESTART_SECONDS", "2")
    folder = stand_ins / "worker"
    (folder / "venv" / "bin").mkdir(parents=True)
    python = folder / "venv" / "bin" / "python3"
    python.write_text('#!/bin/bash\necho run >> "$STAND_IN/runs"\nexit 75\n')
    python.chmod(0o755)
    (folder / "worker.sh").write_text(worker_script(Job(name="one", config="c.py", machine=parse_machine("v5e:4x4"))))
    pack(ROOT, folder / "code.tar.gz")
    started = subprocess.Popen(["bash", str(folder / "worker.sh"), "start"], stdout=subprocess.DEVNULL)
    try:
        for _ in range(300):
            if "starting it again" in (folder / "worker.log").read_text() if (folder / "worker.log").exists() else "":
                break
            subprocess.run(["sleep", "0.1"])
        subprocess.run(["bash", str(folder / "worker.sh"), "stop"], check=True)
        assert started.wait(timeout=20) == 75
    finally:
        started.kill()
    assert (stand_ins / "runs").read_text() == "run\n"


@pytest.mark.parametrize(("action", "marked"), [("start", True), ("follow", True), ("stop", False)])
def test_a_sweep_that_is_stopped_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, marked: bool
):
    monkeypatch.setattr(launch_main, "run_job", lambda *_: 0)
    (tmp_path / "sweep.txt").write_text("train.seed=1\n")
    sweep = ["--sweep", str(tmp_path / "sweep.txt"), "--files", str(tmp_path / "files"), "--action", action]
    assert launch_main.run([*TARGETS["tpu-vm"], *COMMON, *sweep]) == 0
    assert bool(list((tmp_path / "files").glob("*/done"))) == marked


@pytest.mark.parametrize("target", ["local", "slurm", "gke", "gke-gpu"])
def test_datasets_are_copied_to_tpu_workers_alone(target: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        launch_main.run([*TARGETS[target], *COMMON, "--datasets", "gs://b/d", "--dry-run"])
    assert "unrecognized arguments: --datasets" in capsys.readouterr().err


def test_sbatch_gets_a_script_that_queues_itself_again(stand_ins: Path, monkeypatch: pytest.MonkeyPatch):
    files = stand_ins / "slurm files"
    arguments = ["slurm", "--machine", "h100:16", *COMMON, *OVERRIDES, "--files", str(files), "--restarts", "3"]
    assert launch_main.run(arguments) == 0
    assert calls(stand_ins, "sbatch") == [["sbatch", str(files / "job.sbatch")]]
    text = (files / "job.sbatch").read_text()
    log = f'--output="{files}/logs/%j.log"'
    for line in ("--requeue", "--signal=TERM@300", "--ntasks-per-node=8", "--nodes=2", log):
        assert f"#SBATCH {line}\n" in text
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    (files / "logs").mkdir(exist_ok=True)
    ends = (
        [("75", 1)] * 3 + [("1", 1)] + [("75", 1)] + [("1", 1)] * 2 + [("0", 0), ("1", 0)]
    )  # three crashes, and one more
    for restarts, (code, again) in enumerate(ends):
        (stand_ins / "codes-").write_text(code)
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        before = len(calls(stand_ins, "scontrol"))
        done = subprocess.run(["bash", str(files / "job.sbatch")], capture_output=True, text=True)
        assert done.returncode == int(code) and "two words" in done.stdout
        assert calls(stand_ins, "scontrol")[before:] == [["scontrol", "requeue", "77"]] * again
    assert all(call == TRAINING for call in calls(stand_ins, "python3", "-m", "train.main"))


def test_kubectl_gets_a_jobset_with_the_overrides_intact(stand_ins: Path):
    yaml = pytest.importorskip("yaml")
    files = stand_ins / "k8s files"
    assert launch_main.run([*TARGETS["gke"], *COMMON, *OVERRIDES, "--files", str(files)]) == 0
    assert calls(stand_ins, "kubectl") == [["kubectl", "apply", "--filename", str(files / "jobset.yaml")]]
    assert [call[1] for call in calls(stand_ins, "docker")] == ["build", "push"]
    jobset = yaml.safe_load((files / "jobset.yaml").read_text())
    (slices,) = jobset["spec"]["replicatedJobs"]
    pod = slices["template"]["spec"]["template"]["spec"]
    assert slices["replicas"] == 2 and slices["template"]["spec"]["completions"] == 16
    assert pod["containers"][0]["command"] == [*TRAINING[:5], "checkpoint.path=gs://b/c", *OVERRIDES]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4x4"
    assert {"name": "NOTE", "value": "two words"} in pod["containers"][0]["env"]
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 10


def test_a_queued_resource_is_asked_for_with_a_startup_script_that_resumes(stand_ins: Path):
    files = stand_ins / "queue files"
    assert launch_main.run([*TARGETS["queued-resource"], *COMMON, *OVERRIDES, "--files", str(files)]) == 0
    (create,) = calls(stand_ins, "gcloud", "compute", "tpus", "queued-resources", "create")
    assert "--spot" in create and "--accelerator-type=v5litepod-16" in create and "--node-count=2" in create
    assert f"--metadata-from-file=startup-script={files / 'startup.sh'}" in create
    (copy,) = calls(stand_ins, "gcloud", "storage", "cp")
    assert copy[3:] == [str(files / "code.tar.gz"), str(files / "worker.sh"), "gs://b/x/pretrain-1b/"]
    assert "worker.sh run" in (files / "startup.sh").read_text()


@pytest.mark.parametrize(("code", "kept"), [(0, True), (3, True), (75, False)])
def test_at_boot_a_new_machine_has_the_run_of_the_one_before_and_tells_its_end(stand_ins: Path, code: int, kept: bool):
    """One that is taken away while it saves has not ended: `watch` asks for the next."""
    (stand_ins / "bin" / "curl").write_text("""#!/bin/bash
case "${@: -1}" in *worker-number) echo 1 ;; *) printf "ZONE: 'z'\\nMEGASCALE_SLICE_ID: '2'\\n" ;; esac
""")
    (stand_ins / "bin" / "sleep").write_text("#!/bin/bash\nexit 1\n")  # between two copies of the logs
    for name in ("curl", "sleep"):
        (stand_ins / "bin" / name).chmod(0o755)
    text = tpu_vm.STARTUP.format(name="one", folder="gs://b/x/one", stopped=75)
    home = stand_ins / "root"
    script_text = text.replace("HOME=/root", f"HOME={str(home)!r}")
    (home / "sluice" / "one").mkdir(parents=True)
    (home / "sluice" / "one" / "worker.sh").write_text(f"echo {code} > exit_code\nexit {code}\n")
    for boot in (1, 2):
        before = len(calls(stand_ins, "gcloud")) if boot == 2 else 0
        subprocess.run(["bash", "-c", script_text], check=False, stdout=subprocess.DEVNULL)
        called = [call[2:] for call in calls(stand_ins, "gcloud")[before:]]
        place = "slice-2-worker-1"
        assert ["rm", f"gs://b/x/one/exit/{place}"] in called
        assert (["rsync", "--recursive", f"gs://b/x/one/runs/{place}", "runs"] in called) == (boot == 1)
        assert (["cp", "exit_code", f"gs://b/x/one/exit/{place}"] in called) == kept


def test_a_request_that_is_turned_down_is_made_again(stand_ins: Path):
    (stand_ins / "states").write_text("SUSPENDED")
    name = stand_ins / "bin" / "gcloud"
    tries = stand_ins / "tries"
    name.write_text(
        f"""#!/bin/bash
case "$*" in
  *" describe "*) cat {str(stand_ins / "states")!r}; : > {str(stand_ins / "states")!r} ;;
  *" create "*) echo try >> {str(tries)!r}; [ "$(wc -l < {str(tries)!r})" -ge 3 ] ;;
  *" cat "*) [ -f {str(tries)!r} ] && [ "$(wc -l < {str(tries)!r})" -ge 3 ] && echo 0 || true ;;
esac
"""
    )
    arguments = launch_main.parse_arguments(
        ["queued-resource", "--bucket", "gs://b/x", "--zone", "z", "--machine", "v5e:2x4", *COMMON]
    )
    job = launch_main.make_job(arguments)
    create = Command(("gcloud", "compute", "tpus", "queued-resources", "create", job.name))
    assert tpu_vm.watch(job, arguments, create, seconds=0.0) == 0
    assert tries.read_text() == "try\n" * 3


def test_to_stop_a_run_leaves_its_logs_as_they_are(stand_ins: Path):
    files = stand_ins / "files"
    log = files / "logs" / "worker-0.log"
    log.parent.mkdir(parents=True)
    log.write_text("what it said")
    launch_main.run([*TARGETS["tpu-vm"], *COMMON, "--files", str(files), "--action", "stop"])
    assert log.read_text() == "what it said" and (log.parent / "worker-0-stop.log").exists()


def test_a_sweep_of_which_a_signal_ended_one_job_has_not_ended_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    codes = iter((-9, 0))
    monkeypatch.setattr(launch_main, "run_job", lambda *_: next(codes))
    (tmp_path / "sweep.txt").write_text("train.seed=1\ntrain.seed=2\n")
    sweep = ["--sweep", str(tmp_path / "sweep.txt"), "--files", str(tmp_path / "files")]
    assert launch_main.run([*TARGETS["slurm"], *COMMON, *sweep]) == -9


def test_machines_that_were_taken_away_are_asked_for_again_until_every_worker_has_ended(stand_ins: Path):
    (stand_ins / "states").write_text("WAITING_FOR_RESOURCES ACTIVE SUSPENDED ACTIVE")
    arguments = launch_main.parse_arguments(
        ["queued-resource", "--bucket", "gs://b/x", "--zone", "z", "--machine", "v5e:2x4", "--slices", "2", *COMMON]
    )
    job = launch_main.make_job(arguments)
    create = Command(("gcloud", "compute", "tpus", "queued-resources", "create", job.name))
    assert tpu_vm.watch(job, arguments, create, seconds=0.0) == 3  # the largest exit code of its two workers
    called = [call[4] for call in calls(stand_ins, "gcloud", "compute", "tpus", "queued-resources")]
    assert called == ["describe", "describe", "describe", "delete", "create", "describe"]


def test_a_watch_that_ended_is_taken_up_again(stand_ins: Path, capsys: pytest.CaptureFixture):
    """With the exit codes that were written meanwhile, and without another request."""
    (stand_ins / "states").write_text("ACTIVE")
    arguments = [*TARGETS["queued-resource"], "--slices", "1", "--machine", "v5e:2x2", "--watch", *COMMON]
    assert launch_main.run([*arguments, "--files", str(stand_ins / "files")]) == 3
    told = capsys.readouterr().out
    assert "watched again" in told
    assert "to give the machines back: gcloud compute tpus queued-resources delete pretrain-1b" in told
    called = [call[1:] for call in calls(stand_ins, "gcloud")]
    assert not [call for call in called if "create" in call or "rm" in call or "cp" in call]


def test_an_image_says_which_code_it_has(stand_ins: Path):
    """One that was built before is not of the commit that is here now, and has no file that has gone since."""
    files = stand_ins / "files"
    (files / "image").mkdir(parents=True)
    (files / "image" / "gone.py").touch()
    arguments = [*TARGETS["gke"], *COMMON, "--files", str(files)]
    assert launch_main.run(arguments) == 0
    assert "ENV SLUICE_COMMIT=0123abc\n" in (files / "Dockerfile").read_text()
    assert (files / "image" / "train").is_dir() and not (files / "image" / "gone.py").exists()
    assert launch_main.run([*arguments, "--ready"]) == 0
    assert "SLUICE_COMMIT" not in (files / "jobset.yaml").read_text()


def test_a_sweep_becomes_jobs_that_keep_their_names_and_are_not_run_twice(
    stand_ins: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    lines = tmp_path / "sweep.txt"
    lines.write_text("optimizer.learning_rate=1e-3 train.seed=1  # first\n\nname='two words'\n")
    first, second = (("optimizer.learning_rate=1e-3", "train.seed=1"), ("name=two words",))
    assert read_sweep(lines) == [first, second]
    generator = tmp_path / "sweep.py"
    generator.write_text(
        "def get_sweep():\n    for rate in (1e-3, 2e-3):\n        yield [f'optimizer.learning_rate={rate}']\n"
    )
    assert read_sweep(generator) == [("optimizer.learning_rate=0.001",), ("optimizer.learning_rate=0.002",)]

    files = tmp_path / "files"
    arguments = [*TARGETS["tpu-vm"][:-1], "v6e:2x4", *COMMON, "--sweep", str(lines), "--files", str(files)]
    (stand_ins / "codes-0").write_text("3")
    assert launch_main.run([*arguments, "--restarts", "0"]) == 3  # the first job crashes on worker 0
    assert f"exit   3  pretrain-1b-{job_label(first)}" in capsys.readouterr().out
    before = len(calls(stand_ins, "python3", "-m", "train.main"))
    lines.write_text("name='two words'\noptimizer.learning_rate=1e-3 train.seed=1\n")  # in another order
    assert launch_main.run(arguments) == 0
    assert "done before" in capsys.readouterr().out
    after = calls(stand_ins, "python3", "-m", "train.main")[before:]
    assert len(after) == 1  # only the job that had failed
    label = job_label(first)
    assert after[0][-4:] == [f"checkpoint.path=gs://b/c/{label}", f"run_dir=runs/pretrain-1b/{label}", *first]


@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_a_job_of_a_sweep_has_its_folder_within_the_quotes_of_the_path(quote: str):
    job = Job(name="one", config="c.py", overrides=(f"checkpoint.path={quote}gs://b/c/{quote}",))
    (only,) = sweep_jobs(job, [("train.seed=1",)], "runs")
    assert only.overrides[0] == f"checkpoint.path={quote}gs://b/c/{job_label(('train.seed=1',))}{quote}"


def test_a_job_of_a_sweep_has_a_name_that_kubernetes_takes():
    for length in (8, 30, 40):
        job = Job(name="n" * length, config="c.py")
        one, other = sweep_jobs(job, [("optimizer.learning_rate=1e-3",), ("optimizer.learning_rate=2e-3",)], "runs")
        assert one.name != other.name and len(one.name) <= 47 and one.name.startswith(job.name + "-")
        assert one.overrides[0] == f"run_dir=runs/{job.name}/{one.name.removeprefix(job.name + '-')}"


def test_the_code_goes_with_changes_and_without_what_git_ignores(tmp_path: Path):
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    for name in ("kept.py", "ignored.txt", "a b.py", ".gitignore"):
        (tmp_path / name).write_text("ignored.txt\n" if name == ".gitignore" else name)
    assert code_files(tmp_path) == [".gitignore", "a b.py", "kept.py"]
    with pytest.raises(ValueError, match="cannot be packed"):
        code_files(tmp_path / "kept.py")


def test_machines_have_the_clouds_names():
    assert parse_machine("v5e:4x4").accelerator_type == "v5litepod-16" and parse_machine("v5e:4x4").hosts == 4
    assert parse_machine("v5p:4x4x4").accelerator_type == "v5p-128" and parse_machine("v5p:4x4x4").hosts == 16
    assert parse_machine("v6e:2x4").hosts == 1 and parse_machine("h100:16").hosts == 2
    assert all(chip.flags for chip in CHIPS.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["slurm", "--machine", "h100:8", "--config", "configs/none.py"], "no config at"),
        (["slurm", "--machine", "h100:12", *COMMON], "not whole hosts of 8"),
        (["slurm", "--machine", "v9:4x4", *COMMON], "expected CHIP:SHAPE"),
        (["slurm", *COMMON], "needs --machine h100:N"),
        (["slurm", "--machine", "h100:8", *COMMON, "--name", "No Such"], "expected at most 40"),
        (["slurm", "--machine", "h100:8", *COMMON, "train.seed"], "not of the form"),
        (["gke", "--image", "i", *COMMON], "gke needs --machine"),
        (["gke", "--image", "i", "--machine", "h100:8", "--slices", "2", *COMMON], "has no slices"),
        (["tpu-vm", "--tpu", "t", "--zone", "z", "--machine", "tpu7x:2x2x1", *COMMON], "tpu-vm needs"),
        (["queued-resource", "--bucket", "gs://b", "--zone", "z", "--machine", "v6e:4x4", *COMMON], "add checkpoint"),
        (["tpu-vm", "--tpu", "t", "--zone", "z", "--machine", "v6e:4x4", *COMMON], "add checkpoint"),
        ([*TARGETS["queued-resource"][:-1], *COMMON, "checkpoint.path=/data"], "on the machine's own disk"),
        ([*TARGETS["tpu-vm"], *COMMON, "checkpoint.path=runs/x"], "add checkpoint"),
        (["slurm", "--machine", "h100:8", *COMMON, "--env", "MY-VAR=1"], "letters, digits and '_'"),
        (["queued-resource", "--bucket", "b", "--zone", "z", "--machine", "v6e:4x4", *COMMON], "expected gs://"),
        (["slurm", "--machine", "h100:8", *COMMON, "--sweep", "none.txt"], "there is no such file"),
        (["gke", "--image", "i", "--machine", "h100:8", *COMMON], "add checkpoint"),
        (["gke", "--image", "i", "--machine", "h100:8", *COMMON, "run_dir=/data/x"], "would be on a pod's own disk"),
        (["gke", "--image", "i", "--machine", "h100:8", "--volume", "v", *COMMON, "run_dir=/x"], "on a pod's own disk"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_line(arguments: list[str], words: str):
    with pytest.raises(ValueError, match=words) as error:
        launch_main.run([*arguments, "--dry-run"])
    assert "\n" not in str(error.value)


def test_local_starts_the_processes_with_the_overrides_intact(monkeypatch: pytest.MonkeyPatch):
    local = pytest.importorskip("launch.local")
    started: dict = {}
    monkeypatch.setattr(local, "run", lambda command, **options: started.update(options, command=command) or 75)
    arguments = [*TARGETS["local"], *COMMON, *OVERRIDES, "--restarts", "4"]
    assert launch_main.run(arguments) == 75
    assert list(started["command"]) == TRAINING and started["environment"]["NOTE"] == "two words"
    assert (started["processes"], started["devices"], started["restarts"]) == (2, 4, 4)


@pytest.mark.parametrize("kind", ["tpu", "cuda"])
def test_every_compiler_flag_of_the_presets_is_one_that_the_compiler_knows(kind: str):
    interpreter = os.environ.get(f"SLUICE_{kind.upper()}_PYTHON")
    if not interpreter:
        pytest.skip(f"SLUICE_{kind.upper()}_PYTHON is not set: no compiler here")
    machines = [Machine(name, (8,), 2 if kind == "tpu" else 1) for name, chip in CHIPS.items() if chip.kind == kind]
    name = "LIBTPU_INIT_ARGS" if kind == "tpu" else "XLA_FLAGS"
    flags = " ".join(machine.environment()[name] for machine in machines)
    ask = "from jax.experimental.topologies import get_topology_desc as t; t(platform='tpu', topology_name='v5e:2x2x1')"
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "PYTHONPATH")}
    environment |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    command = [interpreter, "-c", ask if kind == "tpu" else "import jax; jax.devices()"]
    for value, known in ((flags, True), (f"{flags} --xla_no_such_flag=1", False)):
        done = subprocess.run(command, env=environment | {name: value}, capture_output=True, text=True)
        assert (done.returncode == 0) == known, done.stderr[-500:]


def test_ctrl_c_leaves_without_a_traceback(monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(launch_main, "run", interrupted)
    with pytest.raises(SystemExit) as left:
        launch_main.main()
    assert left.value.code == 130


def test_steps_stop_at_the_first_failure_and_name_a_missing_command(tmp_path: Path):
    some = [File(tmp_path / "a b" / "f", "text\nEND\n"), Command(("false",)), File(tmp_path / "never", "")]
    assert execute(some) == 1 and not (tmp_path / "never").exists()
    (tmp_path / "a b" / "f").unlink()
    subprocess.run(["bash"], input=script(some[:1]), text=True, check=True)  # the printed script does the same
    assert (tmp_path / "a b" / "f").read_text() == "text\nEND\n"
    with pytest.raises(ValueError, match="there is no command 'no-such-tool'"):
        execute([Command(("no-such-tool",))])


def test_an_end_is_told_while_others_run_on(capfd: pytest.CaptureFixture):
    assert execute([Together((Command(("sleep", "1")), Command(("false",))))]) == 1
    assert capfd.readouterr().err.splitlines() == ["exit   1  false", "exit   0  sleep 1"]


@pytest.mark.parametrize(("asked", "begun"), [(True, 1), (False, 2)])
def test_a_sweep_here_goes_on_after_a_run_that_ended_too_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool, begun: int
):
    """Its exit code is that of a launcher that was asked to stop, and only that one ends the sweep."""
    began = []

    def once(command, *, stopped, **_):
        began.append(command)
        if asked:
            stopped()
        return 75

    monkeypatch.setattr(launch_main.local, "run", once)
    (tmp_path / "sweep.txt").write_text("train.seed=1\ntrain.seed=2\n")
    sweep = ["--sweep", str(tmp_path / "sweep.txt"), "--files", str(tmp_path / "files")]
    assert launch_main.run(["local", *COMMON, *sweep]) == 75 and len(began) == begun


def test_a_sweep_waits_for_the_job_that_it_lost_sight_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It runs on; the next one would take its chips."""
    begun = []
    monkeypatch.setattr(launch_main, "run_job", lambda job, *_: begun.append(job) or steps.LOST)
    (tmp_path / "sweep.txt").write_text("train.seed=1\ntrain.seed=2\n")
    sweep = ["--sweep", str(tmp_path / "sweep.txt"), "--files", str(tmp_path / "files")]
    assert launch_main.run([*TARGETS["tpu-vm"], *COMMON, *sweep]) == steps.LOST and len(begun) == 1


@pytest.mark.parametrize("text", ["a $HOME", "$(HOME)", "$$(HOME)", "a$$b$", "$$$", "plain"])
def test_kubernetes_leaves_dollars_as_they_are(text: str):
    """$(NAME) has the value of a variable and $$ is $: kubernetes.io, "Define Dependent Environment Variables"."""
    expanded = re.sub(r"\$(\$|\((\w+)\))", lambda found: "$" if found[1] == "$" else "/root", literal(text))
    assert expanded == text


def test_yaml_is_what_was_meant():
    yaml = pytest.importorskip("yaml")
    value = {"a": {"b": [1, {"c": "x: y", "d": ["q"]}, "it's"]}, "e": {}, "f": True, "g": [["h", "i"], "j"]}
    assert yaml.safe_load("\n".join(yaml_lines(value))) == value
