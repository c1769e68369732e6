"""A sweep: a file of override lists becomes jobs, each with a name and a run folder of its own that never change.

A text file has one job a line, its overrides as a shell would read them; "#" begins a comment. A Python file has
`get_sweep()`, a generator of override lists. Launched again, a sweep goes on: the name of a job comes from its
overrides alone, so lines may be added, removed and reordered.
"""

import hashlib
import importlib.util
import re
import shlex
from dataclasses import replace
from pathlib import Path

from launch.job import Job

MAX_NAME = 47  # of a job: Kubernetes' names of hosts have 63 characters, and end in "-slice-9999-9999" here


def read_sweep(path: Path) -> list[tuple[str, ...]]:
    """The override lists of a sweep file.

    Raises:
      ValueError: no such file, an override that is none, or the same list twice.
    """
    if not path.is_file():
        raise ValueError(f"--sweep {path}: there is no such file")
    if path.suffix == ".py":
        spec = importlib.util.spec_from_file_location("sweep", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not hasattr(module, "get_sweep"):
            raise ValueError(f"--sweep {path}: it has no get_sweep() that yields lists of overrides")
        lists = [tuple(overrides) for overrides in module.get_sweep()]
    else:
        lines = path.read_text(encoding="utf-8").splitlines()
        lists = [found for line in lines if (found := tuple(shlex.split(line, comments=True)))]
    for overrides in lists:
        for override in overrides:
            if "=" not in override:
                raise ValueError(f"--sweep {path}: {override!r} is not of the form section.field=value")
        if lists.count(overrides) > 1:
            raise ValueError(f"--sweep {path}: {shlex.join(overrides)} is there twice")
    if not lists:
        raise ValueError(f"--sweep {path}: it has no jobs")
    return lists


def sweep_jobs(job: Job, lists: list[tuple[str, ...]], runs: str) -> list[Job]:
    """One job for each override list, with run_dir=RUNS/JOB/NAME, and a folder of its own in checkpoint.path."""
    jobs = []
    for overrides in lists:
        label = job_label(overrides, MAX_NAME - len(job.name) - 1)
        run_dir = f"run_dir={runs.rstrip('/')}/{job.name}/{label}"
        common = (folder_of(one, label) if one.startswith("checkpoint.path=") else one for one in job.overrides)
        jobs.append(replace(job, name=f"{job.name}-{label}", overrides=(*common, run_dir, *overrides)))
    return jobs


def folder_of(override: str, label: str) -> str:
    """The override with the folder `label` in the one that it names, which may stand in quotes."""
    name, _, value = override.partition("=")
    quote = value[:1] if value[:1] in ("'", '"') and value[-1:] == value[:1] else ""
    return f"{name}={quote}{value.strip(quote or None).rstrip('/')}/{label}{quote}"


def job_label(overrides: tuple[str, ...], room: int = MAX_NAME) -> str:
    """A short name: the first changed fields as people read them, and a hash of all: learning-rate-1e-3-4f2a9c.

    room: characters that it may have; the hash alone, of 6, is there in any case.
    """
    fields = ((path.split(".")[-1], value) for path, _, value in (override.partition("=") for override in overrides))
    words = "-".join(f"{field}-{value}" for field, value in fields)
    readable = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[: max(0, min(24, room - 7))].strip("-")
    digest = hashlib.sha256(shlex.join(overrides).encode()).hexdigest()[:6]
    return f"{readable}-{digest}" if readable else digest
