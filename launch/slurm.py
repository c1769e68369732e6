"""Slurm: one sbatch script a job, one process a GPU, requeued when it was stopped, preempted or ran out of time."""

import shlex
from argparse import ArgumentParser, Namespace
from pathlib import Path

from launch.job import STOPPED, Job
from launch.steps import Command, File, Step

# --signal without "B:" reaches the processes of srun and not this script. A later job of the same name waits for this
# one (singleton), so that submitting a sweep twice never runs a job twice at once. A step does not inherit its job's
# --cpus-per-task (Slurm 22.05, release notes): srun is told again. It waits for the others to save when one process has
# ended; the run's own watchdog ends those that hang.
SBATCH = """\
#!/usr/bin/env bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={tasks}
{resources}
#SBATCH --time={time}
#SBATCH --requeue
#SBATCH --signal=TERM@{warning}
#SBATCH --open-mode=append
#SBATCH --output="{logs}/%j.log"
#SBATCH --dependency=singleton
{options}
set -uo pipefail
cd {root}
{setup}
{exports}
srun --open-mode=append --cpus-per-task={cpus} --kill-on-bad-exit=0 --wait=600 --output={srun_logs}/%j-%t.log {command}
code=$?
count={srun_logs}/$SLURM_JOB_ID.crashes  # SLURM_RESTART_COUNT counts time limits and preemptions too
crashes=$(cat "$count" 2>/dev/null || echo 0)
[ "$code" -eq 0 ] || [ "$code" -eq {stopped} ] || echo $((crashes += 1)) > "$count"
if [ "$code" -eq {stopped} ] || {{ [ "$code" -ne 0 ] && [ "$crashes" -le {restarts} ]; }}; then
  echo "the run ended with $code, queued again ($crashes of its ends were crashes, {restarts} may be)"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Options of `slurm`."""
    parser.add_argument("--time", default="24:00:00", help="limit of one stretch; the job is queued again after it")
    parser.add_argument("--warning", type=int, default=300, help="seconds before the limit at which the run is told")
    parser.add_argument("--partition", help="partition to ask for")
    parser.add_argument("--account", help="account to charge")
    parser.add_argument("--cpus", type=int, default=8, help="CPU cores a process (default 8)")
    parser.add_argument("--sbatch", action="append", default=[], metavar="OPTION", help="one more #SBATCH option")
    parser.add_argument("--setup", metavar="SHELL", help="a line run first: source .venv/bin/activate, module load ...")


def steps(job: Job, arguments: Namespace, folder: Path) -> list[Step]:
    """Write the script, submit it.

    Raises:
      ValueError: the machine has no GPUs, or a path that sbatch's header cannot hold.
    """
    machine = job.machine
    if machine is None or machine.about.kind != "cuda":
        raise ValueError("slurm needs --machine h100:N, the number of GPUs of the whole job")
    tasks = min(machine.chips, machine.about.host)
    logs = (folder / "logs").absolute()
    if any(character in str(logs) for character in '"\\\n'):
        raise ValueError(f"--files {folder}: sbatch's header cannot hold a path with quotes or backslashes")
    chosen = [f"--{name}={value}" for name in ("partition", "account") if (value := getattr(arguments, name))]
    text = SBATCH.format(
        name=job.name,
        nodes=machine.hosts,
        tasks=tasks,
        resources=f"#SBATCH --gpus-per-node={tasks}\n#SBATCH --cpus-per-task={arguments.cpus}",
        cpus=arguments.cpus,
        time=arguments.time,
        warning=arguments.warning,
        logs=logs,
        options="".join(f"#SBATCH {option}\n" for option in [*chosen, *arguments.sbatch]),
        root=shlex.quote(str(Path.cwd())),
        setup=arguments.setup or ":",
        exports="\n".join(f"export {name}={shlex.quote(value)}" for name, value in job.variables().items()),
        srun_logs=shlex.quote(str(logs)),
        command=shlex.join(job.command()),
        stopped=STOPPED,
        restarts=job.restarts,
    )
    path = folder / "job.sbatch"
    return [File(path, text), Command(("mkdir", "-p", str(logs))), Command(("sbatch", str(path)))]
