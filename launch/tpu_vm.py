"""TPU VMs through gcloud: a slice that exists, or a queued resource that is asked for and runs by itself.

On an existing slice the run is detached: a lost connection is taken up again, and Ctrl-C leaves the run alive. The
queued resource runs the same worker script at every boot, so that a machine that comes back goes on.
"""

import shlex
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from launch.job import STOPPED, Job, worker_script
from launch.steps import Command, File, Step, Together

RESOURCE = ("gcloud", "compute", "tpus", "queued-resources")
GONE = ("SUSPENDED", "FAILED")  # states in which a queued resource gets no machine any more
STARTUP = """\
#!/usr/bin/env bash
# Start-up script of {name}: runs at every boot of every worker, so that the run resumes by itself.
export HOME=/root
attributes=http://metadata.google.internal/computeMetadata/v1/instance/attributes
about() {{ curl -s -f -H 'Metadata-Flavor: Google' "$attributes/$1"; }}
slice=$(about tpu-env | sed -n "s/^MEGASCALE_SLICE_ID[^0-9]*//p" | tr -dc 0-9)
place=slice-${{slice:-0}}-worker-$(about agent-worker-number || hostname)  # the same where a machine is made again
mkdir -p "$HOME"/sluice/{name} && cd "$HOME"/sluice/{name} || exit 1
for try in 1 2 3 4 5; do
  gcloud storage cp {folder}/code.tar.gz {folder}/worker.sh . && break
  sleep 20
done
gcloud storage rm {folder}/exit/"$place"  # of an earlier start
if [ ! -d runs ]; then  # a new machine; on another, what lies there is newer
  mkdir -p runs && gcloud storage rsync --recursive {folder}/runs/"$place" runs
fi
save() {{
  gcloud storage rsync --recursive --exclude='.*checkpoints/.*' runs {folder}/runs/"$place"
  gcloud storage cp worker.log {folder}/logs/"$place".log
}}
(while sleep 300; do save; done) &
rm -f exit_code  # of an earlier boot
bash worker.sh run > worker.log 2>&1
code=$?
kill $!
save
[ -f exit_code ] || echo $code > exit_code  # worker.sh was killed
[ "$(cat exit_code)" = {stopped} ] && exit  # the machine is being taken away: the next one goes on
gcloud storage cp exit_code {folder}/exit/"$place"
"""


def add_vm_arguments(parser: ArgumentParser) -> None:
    """Options of `tpu-vm`."""
    parser.add_argument("--tpu", required=True, metavar="NAME", help="the TPU VM, which exists")
    parser.add_argument("--action", choices=("start", "follow", "stop"), default="start", help="default: start")
    _add_place(parser)


def add_queue_arguments(parser: ArgumentParser) -> None:
    """Options of `queued-resource`."""
    parser.add_argument("--bucket", required=True, metavar="gs://...", help="a folder for code, logs and exit codes")
    parser.add_argument("--spot", action="store_true", help="spot machines: cheaper, taken away at any time")
    parser.add_argument("--service-account", metavar="EMAIL", help="that the machines act as")
    parser.add_argument("--watch", action="store_true", help="stay, and ask again when the machines are taken away")
    _add_place(parser)


def _add_place(parser: ArgumentParser) -> None:
    parser.add_argument("--zone", required=True, help="zone of the TPU")
    parser.add_argument("--project", help="Google Cloud project; default: gcloud's own")
    parser.add_argument("--datasets", metavar="gs://...", help="copied to datasets/ on every worker before the run")


def vm_steps(job: Job, arguments: Namespace, folder: Path) -> list[Step]:
    """Copy the code to every worker, then start (or follow, or stop) the run on all of them at once.

    folder: for the generated files, and one log a worker.
    """
    if job.machine is None or job.machine.about.accelerator is None or job.machine.slices > 1:
        raise ValueError("tpu-vm needs --machine with one slice of v4, v5e, v5p or v6e; several: queued-resource")
    if job.machine.hosts > 1:
        job.check_shared()
    place = _place(arguments)
    gcloud = ("gcloud", "compute", "tpus", "tpu-vm")
    remote = f"sluice/{job.name}"

    def on(worker: int | str, command: str) -> tuple[str, ...]:
        return (*gcloud, "ssh", arguments.tpu, *place, f"--worker={worker}", f"--command={command}")

    workers, stop = range(job.machine.hosts), arguments.action == "stop"
    runs = tuple(
        Command(
            on(worker, f"bash {remote}/worker.sh {arguments.action}"),
            log=folder / "logs" / f"worker-{worker}{'-stop' if stop else ''}.log",
            after_loss=on(worker, f"bash {remote}/worker.sh {arguments.action}"),
        )
        for worker in workers
    )
    if arguments.action != "start":
        return [Together(runs)]
    files = (str(folder / "code.tar.gz"), str(folder / "worker.sh"))
    return [
        File(folder / "worker.sh", worker_script(job)),
        Command((sys.executable, "-m", "launch.pack", files[0])),
        # One worker after the other: the first connection makes keys, which several at once would trip over.
        *(Command(on(worker, f"mkdir -p {remote}")) for worker in workers),
        Command((*gcloud, "scp", *files, f"{arguments.tpu}:{remote}/", *place, "--worker=all")),
        Together(runs),
    ]


def queue_steps(job: Job, arguments: Namespace, folder: Path) -> list[Step]:
    """Put the code into the bucket and ask for machines that run it at every boot."""
    machine, bucket = job.machine, arguments.bucket.rstrip("/")
    if machine is None or machine.about.accelerator is None:
        raise ValueError("queued-resource needs --machine with a shape of v4, v5e, v5p or v6e")
    if not bucket.startswith("gs://") or " " in bucket:
        raise ValueError(f"--bucket {arguments.bucket}: expected gs://BUCKET/FOLDER")
    job.check_shared()
    if "://" not in job.place():
        raise ValueError(
            f"checkpoints in {job.place()} would be on the machine's own disk, which goes with it: add "
            f"checkpoint.path={bucket}/FOLDER"
        )
    remote = f"{bucket}/{job.name}"
    nodes = (f"--node-id={job.name}",) if machine.slices == 1 else (
        f"--node-count={machine.slices}", f"--node-prefix={job.name}")  # fmt: skip
    create = (
        *RESOURCE, "create", job.name, *_place(arguments), *nodes,
        f"--accelerator-type={machine.accelerator_type}", f"--runtime-version={machine.about.runtime}",
        f"--metadata-from-file=startup-script={folder / 'startup.sh'}",
        *(("--spot",) if arguments.spot else ()),
        *((f"--service-account={arguments.service_account}",) if arguments.service_account else ()),
    )  # fmt: skip
    files = (str(folder / "code.tar.gz"), str(folder / "worker.sh"))
    return [
        File(folder / "worker.sh", worker_script(job)),
        File(folder / "startup.sh", STARTUP.format(name=job.name, folder=remote, stopped=STOPPED)),
        Command((sys.executable, "-m", "launch.pack", files[0])),
        Command(("gcloud", "storage", "cp", *files, f"{remote}/")),
        Command(create),
    ]


def queue_state(job: Job, arguments: Namespace) -> str:
    """The state of the job's queued resource; "" where there is none, or no answer."""
    return _output((*RESOURCE, "describe", job.name, *_place(arguments), "--format=value(state.state)")).strip()


def watch(job: Job, arguments: Namespace, create: Command, *, again: bool = False, seconds: float = 60.0) -> int:
    """Waits until every worker has written its exit code; asks for machines again when they were taken away.

    again: the job was asked for before, by a launch that has ended.
    """
    assert job.machine is not None
    exits, workers = f"{arguments.bucket.rstrip('/')}/{job.name}/exit/*", job.machine.hosts * job.machine.slices
    delete = (*RESOURCE, "delete", job.name, *_place(arguments), "--force", "--quiet")
    if not again:
        subprocess.run(("gcloud", "storage", "rm", exits), check=False)  # of an earlier job of this name
    shown, lacking = None, False
    while True:
        codes = _output(("gcloud", "storage", "cat", exits)).split()
        if len(codes) >= workers:
            print(f"{job.name}: exit codes {', '.join(codes)}; to give the machines back: {shlex.join(delete)}")
            return max(map(int, codes))
        state = queue_state(job, arguments)
        if (state, codes) != shown:
            ended = f"; {len(codes)} of {workers} workers have ended: {', '.join(codes)}" if codes else ""
            print(f"{job.name}: {state or 'no answer'}{ended}", flush=True)
            shown = state, codes
        if state in GONE:
            subprocess.run(delete, check=False)
        if state in GONE or (lacking and not state):  # there was none to be had at the last try
            lacking = bool(subprocess.run(create.argv, check=False).returncode)
        time.sleep(seconds)


def _place(arguments: Namespace) -> tuple[str, ...]:
    return (f"--zone={arguments.zone}", *((f"--project={arguments.project}",) if arguments.project else ()))


def _output(argv: tuple[str, ...]) -> str:
    return subprocess.run(argv, capture_output=True, text=True).stdout
