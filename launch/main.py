"""One command, many machines: starts the training of a config where TARGET says, and again where it was stopped.

    python -m launch.main local --config configs/quickstart.py --processes 2
    python -m launch.main tpu-vm --tpu my-slice --zone us-east5-b --machine v6e:2x4 --config configs/pretrain_1b.py
    python -m launch.main queued-resource --spot --machine v6e:16x16 --bucket gs://... --zone us-east5-b
        --config configs/pretrain_8b.py checkpoint.path=gs://...
    python -m launch.main slurm --machine h100:16 --config configs/pretrain_1b.py
    python -m launch.main gke --machine v6e:4x4 --slices 2 --image REGISTRY/sluice:1 --config configs/pretrain_1b.py
        checkpoint.path=gs://...

It builds command lines and files; --dry-run prints them as a shell script and does nothing.
`python -m launch.main TARGET --help` lists the options of one target.
"""

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launch import gke, local, slurm, tpu_vm
from launch.job import Job
from launch.machines import CHIPS, parse_machine
from launch.steps import LOST, Command, Step, execute, script
from launch.sweep import read_sweep, sweep_jobs

RESTARTS = (
    "of a run that crashed; stopped ones always go on",
    "of a run that crashed or stopped by itself, without ten good minutes between",
)
TARGETS = {
    "local": None,
    "tpu-vm": tpu_vm.add_vm_arguments,
    "queued-resource": tpu_vm.add_queue_arguments,
    "slurm": slurm.add_arguments,
    "gke": gke.add_arguments,
}


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    if not argv or argv[0] not in TARGETS:
        if argv and argv[0] not in ("-h", "--help"):
            print(f"error: no target {argv[0]!r}; expected one of {', '.join(TARGETS)}", file=sys.stderr)
        print(__doc__, file=sys.stdout if "--help" in argv or "-h" in argv else sys.stderr)
        sys.exit(0 if "--help" in argv or "-h" in argv else 2)
    target = argv[0]
    parser = argparse.ArgumentParser(prog=f"python -m launch.main {target}")
    parser.add_argument("--config", required=True, metavar="FILE", help="a file in configs/")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="what differs from the config")
    parser.add_argument("--dry-run", action="store_true", help="print every command and file; do nothing")
    parser.add_argument("--name", help="of the job: a-z, 0-9 and '-'; default: the config's")
    parser.add_argument("--machine", metavar="CHIP:SHAPE", help=f"v6e:16x16, h100:8, ...; chips: {', '.join(CHIPS)}")
    parser.add_argument("--slices", type=int, default=1, help="slices of that shape")
    parser.add_argument("--restarts", type=int, default=10, help=RESTARTS[target == "local"])
    parser.add_argument("--cache", metavar="DIR", help="compiled programs, shared by all workers: a folder or gs://...")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="one more variable")
    interpreter = sys.executable if target == "local" else "python3"
    parser.add_argument("--python", default=interpreter, help=f"interpreter that runs the training: {interpreter}")
    parser.add_argument("--files", metavar="DIR", help="for generated files and logs; default: runs/launch/NAME")
    parser.add_argument("--sweep", metavar="FILE", help="override lists: a job for each")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="run folders of a sweep: DIR/NAME/JOB")
    if target == "local":
        parser.add_argument("--processes", type=int, default=1, help="processes on this machine")
        parser.add_argument("--devices", type=int, metavar="N", help="fake CPU devices of each process")
    else:
        TARGETS[target](parser)  # type: ignore[misc]
    arguments = parser.parse_intermixed_args(argv[1:])
    arguments.target = target
    return arguments


def make_job(arguments: argparse.Namespace) -> Job:
    """The job that the options describe.

    Raises:
      ValueError: an override, a variable or a name that is none.
    """
    for text, what in ((arguments.overrides, "override"), (arguments.env, "--env")):
        for item in text:
            if "=" not in item.strip("="):
                raise ValueError(f"{what} {item!r} is not of the form name=value")
    for item in arguments.env:
        if not re.fullmatch(r"[A-Za-z_]\w*=.*", item, re.DOTALL):
            raise ValueError(f"--env {item!r}: the name of a variable has letters, digits and '_'")
    if not Path(arguments.config).is_file():
        raise ValueError(f"no config at {arguments.config!r}; run from the root of the repository")
    name = arguments.name or re.sub(r"[^a-z0-9]+", "-", Path(arguments.config).stem.lower()).strip("-")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):
        raise ValueError(f"--name {name}: expected at most 40 of a-z, 0-9 and '-', beginning with a letter")
    return Job(
        name=name,
        config=arguments.config,
        overrides=tuple(arguments.overrides),
        machine=parse_machine(arguments.machine, arguments.slices) if arguments.machine else None,
        environment=tuple((item.partition("=")[0], item.partition("=")[2]) for item in arguments.env),
        cache=arguments.cache,
        restarts=arguments.restarts,
        commit=code_commit(),
        python=arguments.python,
        datasets=getattr(arguments, "datasets", None),
    )


def code_commit() -> str:
    """The commit of the code, with "+changes" where files differ from it; "" outside a repository."""
    ask = {"capture_output": True, "text": True}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], **ask).stdout.strip()  # type: ignore[call-overload]
    changed = subprocess.run(["git", "status", "--porcelain"], **ask).stdout.strip()  # type: ignore[call-overload]
    return commit + ("+changes" if commit and changed else "")


def plan(job: Job, arguments: argparse.Namespace, folder: Path) -> list[Step]:
    """The files and commands of one job on any target but `local`."""
    if arguments.target == "tpu-vm":
        return tpu_vm.vm_steps(job, arguments, folder)
    if arguments.target == "queued-resource":
        return tpu_vm.queue_steps(job, arguments, folder)
    if arguments.target == "slurm":
        return slurm.steps(job, arguments, folder)
    return gke.steps(job, arguments, folder)


def local_script(job: Job, arguments: argparse.Namespace) -> str:
    """What `local` starts, as a shell script; launch/local.py also picks the port, watches and restarts."""
    lines = []
    for index in range(arguments.processes):
        variables = job.variables()
        if arguments.processes > 1:
            variables |= {"SLUICE_COORDINATOR": "127.0.0.1:PORT", "SLUICE_PROCESS_INDEX": str(index)}
            variables |= {"SLUICE_PROCESS_COUNT": str(arguments.processes)}
        if arguments.devices is not None:
            fake = f"--xla_force_host_platform_device_count={arguments.devices}"
            variables |= {
                "XLA_FLAGS": " ".join(filter(None, (variables.get("XLA_FLAGS"), fake))),
                "JAX_PLATFORMS": "cpu",
            }
        assignments = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
        lines.append(" ".join([*assignments, shlex.join(job.command())]))
    return lines[0] if len(lines) == 1 else "\n".join([*(f"{line} &" for line in lines), "wait"])


def run_job(job: Job, arguments: argparse.Namespace, folder: Path) -> int:
    """Launches one job; returns its exit code, or that of the submission where it runs elsewhere."""
    if arguments.target == "local":
        if arguments.dry_run:
            print(local_script(job, arguments))
            return 0
        return local.run(
            job.command(),
            processes=arguments.processes,
            devices=arguments.devices,
            restarts=job.restarts,
            environment=job.variables(),
            stopped=lambda: setattr(arguments, "stop_asked", True),
        )
    steps = plan(job, arguments, folder)
    if arguments.dry_run:
        print(script(steps))
        return 0
    if not getattr(arguments, "watch", False):
        return execute(steps)
    create = steps[-1]
    assert isinstance(create, Command)
    if state := tpu_vm.queue_state(job, arguments):
        print(f"{job.name} was asked for before ({state}): watched again, with the code that it has", flush=True)
        return tpu_vm.watch(job, arguments, create, again=True)
    return execute(steps) or tpu_vm.watch(job, arguments, create)


def run(argv: Sequence[str]) -> int:
    """The command: one job, or those of a sweep that have not ended well yet."""
    arguments = parse_arguments(argv)
    job = make_job(arguments)
    base = Path(arguments.files or f"runs/launch/{job.name}")
    jobs = sweep_jobs(job, read_sweep(Path(arguments.sweep)), arguments.runs) if arguments.sweep else [job]
    codes: dict[str, int] = {}
    for job in jobs:
        folder = base / job.name if arguments.sweep else base
        done = folder / "done"
        if arguments.sweep and done.is_file():
            print(f"# {job.name}: done before ({done})")
            continue
        if arguments.dry_run and len(jobs) > 1:
            print(f"# ---- {job.name}: {shlex.join(job.overrides)}")
        codes[job.name] = run_job(job, arguments, folder)
        if arguments.dry_run:
            continue
        ended = arguments.target in ("local", "tpu-vm") and getattr(arguments, "action", "start") != "stop"
        if codes[job.name] == 0 and ended:  # elsewhere 0 says that it was submitted, or stopped
            folder.mkdir(parents=True, exist_ok=True)
            done.touch()
        if getattr(arguments, "stop_asked", False):
            break  # this launcher itself was
        if codes[job.name] == LOST and arguments.target == "tpu-vm":
            print(f"# {job.name} runs on where it is: launch again with a connection", file=sys.stderr)
            break  # the next job would take its chips
    if arguments.sweep and not arguments.dry_run:
        for name, code in codes.items():
            print(f"exit {code:>3}  {name}")
    return max(codes.values(), key=abs, default=0)  # of a command that a signal ended it is below 0


def main() -> None:
    """Runs the command; bad input ends in one line and exit code 1."""
    try:
        code = run(sys.argv[1:])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:  # what runs elsewhere runs on
        code = 130
    sys.stdout.flush()
    sys.exit(code)


if __name__ == "__main__":
    main()
