"""Before anything is compiled: do all processes run the same thing, can they write, does the model fit the device.

Every finding is a sentence that names the process and both values. Nothing here needs a collective.
"""

import contextlib
import fcntl
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import jax
from etils import epath

from data.build import build_dataset, dataset_folder
from data.manifest import read_manifest
from data.store import find_dataset
from train.config import Config, to_json
from train.identity import flat
from train.meeting import Processes

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "sentencepiece")
OPTIONAL = ("libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin")
GIB = 1 << 30


def versions() -> dict[str, str]:
    """Of Python and of the libraries that a run's numbers depend on."""
    found = {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES}
    for name in OPTIONAL:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the code, with "+changes" where files differ from it; None where nothing tells.

    Code that a launcher copied has no repository around it: there SLUICE_COMMIT says what it was.
    """
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():  # a repository further up is of something else
        return os.environ.get("SLUICE_COMMIT")
    try:
        ask: dict[str, Any] = {"cwd": root, "capture_output": True, "text": True, "check": True, "timeout": 20}
        found = subprocess.run(["git", "rev-parse", "HEAD"], **ask).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], **ask).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("SLUICE_COMMIT")
    return found + ("+changes" if changed else "")


def check_alike(processes: Processes, name: str, facts: Mapping[str, Any]) -> None:
    """Refuses, on all processes, a run whose processes differ in any of these JSON values.

    Errors: ValueError that names the process, what differs, and both values.
    """
    told = processes.exchange(name, dict(facts))
    for index, other in enumerate(told):
        for key in sorted(told[0].keys() | other.keys()):
            if told[0].get(key) != other.get(key):
                raise ValueError(
                    f"process {index} has {key}={other.get(key)!r}, process 0 has {told[0].get(key)!r}: "
                    "start all processes with the same code, packages and command"
                )


def check_code_and_config(processes: Processes, config: Config) -> None:
    """Commit, package versions and every field of the config, on all processes."""
    if processes.count == 1:
        return
    facts = {"commit": commit(), **versions(), **flat(to_json(config))}
    check_alike(processes, "code and config", facts)


def check_output(processes: Processes, folders: Mapping[str, str]) -> None:
    """Every process writes a file into every folder; where checkpoints go, each sees what process 0 wrote.

    folders: by the setting that names them; run_dir is one of a host's own where checkpoint.path says where checkpoints
    go. Errors: ValueError that says which setting to change.
    """
    problems: list[str] = []
    token = str(processes.exchange("token", f"{os.getpid()}.{time.time_ns()}")[0])
    for setting, folder in folders.items():
        path = epath.Path(folder)
        mine = path / f".write-test-{processes.index}"
        try:
            path.mkdir(parents=True, exist_ok=True)
            mine.write_text(token)
            seen = mine.read_text() == token
        except Exception as error:  # every file system has its own
            reason = " ".join(str(error).split())[:200]
            problems.append(f"process {processes.index} cannot write to {setting}={folder} ({reason})")
        else:
            if not seen:
                problems.append(f"process {processes.index} wrote to {setting}={folder} and does not find it there")
    processes.exchange("written", True)
    shared = {name: folder for name, folder in folders.items() if name != "run_dir" or "checkpoint.path" not in folders}
    for setting, folder in shared.items():
        first = epath.Path(folder) / ".write-test-0"
        if not problems and processes.count > 1 and not (first.exists() and first.read_text() == token):
            problems.append(
                f"process {processes.index} does not see what process 0 wrote to {setting}={folder}: "
                "it must be on a file system that all hosts share"
            )
    told = [line for lines in processes.exchange("write test", problems) for line in lines]
    for folder in folders.values():
        with contextlib.suppress(OSError):  # of a folder that is none, which has been told
            (epath.Path(folder) / f".write-test-{processes.index}").unlink(missing_ok=True)
    if told:
        raise ValueError(told[0])


@contextlib.contextmanager
def run_folder_held(processes: Processes, config: Config) -> Iterator[None]:
    """Within it the run's folder is this run's alone: two at once would remove each other's checkpoints.

    Process 0 holds a lock that the system takes back however the process ends. A run that is about to end there is
    waited for, as long as for a process to join. Errors: ValueError where another run still has the folder then.
    """
    if not processes.chief:
        processes.exchange("run folder", None)
        yield
        return
    with (Path(config.run_dir) / "run.lock").open("a+") as lock:
        waited, limit = 0.0, config.train.meeting.join
        while not _taken(lock):
            if waited == 0:
                print(f"{config.run_dir} is another run's, {_holder(lock)}; waiting for it to end", flush=True)
            if waited >= limit:
                raise ValueError(
                    f"run_dir={config.run_dir} is another run's, {_holder(lock)}: it did not end within {limit:.0f} s; "
                    "stop it, or give this run a run_dir of its own"
                )
            time.sleep(0.5)
            waited += 0.5
        lock.truncate(0)
        print(f"process {os.getpid()} on {platform.node()}", file=lock, flush=True)
        processes.exchange("run folder", None)
        yield


def _taken(lock: TextIO) -> bool:
    """Whether this process has the lock now; a file system without locks keeps nothing apart."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        print(f"{lock.name} cannot be locked ({error.strerror}): make sure that nobody else trains in this folder")
    return True


def _holder(lock: TextIO) -> str:
    lock.seek(0)
    return lock.read().strip() or "of an unknown process"


def output_folders(config: Config) -> dict[str, str]:
    """The folders that a run writes to, by the setting that names them."""
    if "://" in config.run_dir:
        raise ValueError(
            f"run_dir={config.run_dir}: expected a folder; set checkpoint.path={config.run_dir}/checkpoints"
        )
    named = {"checkpoint.path": config.checkpoint.path, "checkpoint.local": config.checkpoint.local}
    return {"run_dir": config.run_dir} | {setting: folder for setting, folder in named.items() if folder}


def build_together(processes: Processes, config: Config) -> Path:
    """The dataset: process 0 builds it, the others wait and say what it is doing.

    Errors: ValueError where a process does not find the dataset that process 0 built.
    """
    processes.beat(0, "building the dataset" if processes.chief else "waiting for the dataset", patience=1000.0)
    path = dataset_folder(config.data)
    if processes.count == 1:
        path = build_dataset(config.data)
        processes.beat(0, "starting", patience=10.0)
        return path
    key = read_manifest(build_dataset(config.data))["key"] if processes.chief else None
    waiting = "process 0 to build the dataset"
    key = processes.exchange("dataset", key, waiting=waiting, progress=lambda: last_line(path / "build.log"))[0]
    path = find_dataset(config.data.path, path)  # of one in a store, each machine takes what it reads
    processes.beat(0, "starting", patience=10.0)
    found = read_manifest(path)["key"] if (path / "manifest.json").is_file() else None
    missing = [index for index, other in enumerate(processes.exchange("dataset found", found)) if other != key]
    if missing:
        raise ValueError(
            f"process {missing[0]} finds no dataset of process 0 at data.path={path}: put it on a file "
            "system that all hosts share, or copy it to every host first"
        )
    return path


def check_devices(processes: Processes) -> None:
    """The same number and kind of devices on all processes."""
    if processes.count > 1:
        here = jax.local_devices()
        check_alike(processes, "devices", {"devices": len(here), "device kind": here[0].device_kind})


def check_memory(memory: Mapping[str, int]) -> str | None:
    """What to say of the memory that a step is expected to take on this device, or None where it fits or is not known.

    memory: bytes by kind; parameters, optimizer and EMA are exact, the rest is estimated.
    Errors: ValueError where the state alone does not fit.
    """
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    if not limit:
        return None
    state = sum(memory.get(kind, 0) for kind in ("parameters", "frozen", "optimizer", "EMA"))
    expected = sum(memory.values())
    if state > limit:
        raise ValueError(
            f"parameters and optimizer take {state / GIB:.1f} GiB on each device, and it has {limit / GIB:.1f}: "
            "raise mesh.fsdp or mesh.tensor"
        )
    if expected > limit:
        return (
            f"warning: about {expected / GIB:.1f} GiB are expected on each device, and it has {limit / GIB:.1f}: raise "
            "train.grad_accum_steps or mesh.fsdp, or let --auto-fit choose"
        )
    return None


def last_line(log: Path) -> str:
    """The last line of a log that may not be there."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return f"({lines[-1].strip()})" if lines else ""
