"""A Ray cluster on machines that are there, with the dataset of a config built on it.

    python -m launch.ray_cluster tpu-vm --tpu NAME --zone ZONE --hosts 4 --config configs/x.py data.path=/mnt/shared/x
    python -m launch.ray_cluster slurm --hosts 8 --cpus 64 --config configs/x.py data.path=/scratch/x
    python -m launch.ray_cluster gke --hosts 8 --cpus 16 --image REGISTRY/sluice:1 --volume CLAIM
        --config configs/x.py data.path=gs://bucket/x data.work=/data/x

Stages rename, append and map files, so all machines must see one folder at one path: data.path, or, where the dataset
is to be kept in a bucket (gs://, s3://), data.work: a network file system, or a bucket mounted as a folder. It is
demanded here, and looked for on every machine when the build starts. The driver runs on the first machine; started
again, it goes on where it stopped. --dry-run prints every file and command.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.gke import MOUNT, yaml_lines
from launch.steps import Command, File, Step, Together, execute, script

PORT = 6379  # Ray's own default
RAY = "ray[default]>=2.40"
STORES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs"}  # what fsspec needs for a bucket

# Worker addresses and numbers stand in the TPU VM's metadata. Source: jax, _src/clusters/cloud_tpu_cluster.py.
TPU_WORKER = """\
#!/usr/bin/env bash
# {name} on one worker of a TPU VM. ray.sh start: the code, its packages, Ray (the first worker is the head);
# drive: build the dataset, on the first worker; stop: end Ray.
set -uo pipefail
folder=$(cd "$(dirname "$0")" && pwd)
attributes=http://metadata.google.internal/computeMetadata/v1/instance/attributes
about() {{ curl -s -H 'Metadata-Flavor: Google' "$attributes/$1"; }}
export PATH="$folder/venv/bin:$PATH"

start() {{
  cd "$folder" && rm -rf code && mkdir code && tar -xzf code.tar.gz -C code || return 1
  if [ ! -x venv/bin/python3 ]; then  # TPU VM images bring Python 3.10
    python3 -m pip install --quiet --user uv && python3 -m uv venv --seed --python 3.12 venv || return 1
  fi
  pip install --quiet -r code/launch/requirements-tpu.txt {packages} || return 1
  ray stop --force
  if [ "$(about agent-worker-number)" = 0 ]; then
    ray start --head --port={port}
  else
    head=$(about worker-network-endpoints | cut -d, -f1 | cut -d: -f3)
    for try in $(seq 60); do ray start --address="$head:{port}" && return; sleep 5; done
    return 1
  fi
}}

case "$1" in
  start) start ;;
  drive) cd "$folder/code" && {drive} ;;
  stop) ray stop ;;
esac
"""

SBATCH = """\
#!/usr/bin/env bash
#SBATCH --job-name={name}
#SBATCH --nodes={hosts}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task={cpus}
#SBATCH --time={time}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output="{logs}/%j.log"
#SBATCH --dependency=singleton
{options}
set -uo pipefail
cd {root}
{setup}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
start() {{ srun --overlap --cpus-per-task={cpus} --nodes="$1" --ntasks="$1" "${{@:2}}" & }}
start 1 --nodelist="$head" ray start --head --node-ip-address="$head" --port={port} --num-cpus={cpus} --block
for try in $(seq 60); do ray status --address="$head:{port}" >/dev/null 2>&1 && break; sleep 2; done
if [ {hosts} -gt 1 ]; then
  start {others} --exclude="$head" ray start --address="$head:{port}" --num-cpus={cpus} --block
fi
srun --overlap --cpus-per-task={cpus} --nodes=1 --ntasks=1 --nodelist="$head" {drive}
"""


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m launch.ray_cluster", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("target", choices=("tpu-vm", "slurm", "gke"))
    parser.add_argument("--config", required=True, metavar="FILE", help="a file in configs/")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="what differs from the config")
    parser.add_argument("--hosts", type=int, required=True, help="machines, the head among them")
    parser.add_argument("--cpus", type=int, default=8, help="CPU cores of a machine (slurm, gke)")
    parser.add_argument("--name", help="of the job; default: the config's name with '-data'")
    parser.add_argument("--files", metavar="DIR", help="for generated files and logs; default: runs/launch/NAME")
    parser.add_argument("--dry-run", action="store_true", help="print every command and file; do nothing")
    parser.add_argument("--tpu", metavar="NAME", help="tpu-vm: the TPU VM, which exists")
    parser.add_argument("--zone", help="tpu-vm: its zone")
    parser.add_argument("--project", help="tpu-vm: Google Cloud project; default: gcloud's own")
    parser.add_argument("--time", default="24:00:00", help="slurm: limit of the job")
    parser.add_argument("--setup", metavar="SHELL", help="slurm: a line run first: source .venv/bin/activate")
    parser.add_argument("--sbatch", action="append", default=[], metavar="OPTION", help="slurm: one more option")
    parser.add_argument("--image", help="gke: container image with the code and Ray")
    parser.add_argument("--volume", metavar="CLAIM", help=f"gke: a ReadWriteMany volume claim, mounted at {MOUNT}")
    parser.add_argument("--memory", default="32Gi", help="gke: memory of a machine")
    arguments = parser.parse_intermixed_args(argv)
    arguments.name = arguments.name or Path(arguments.config).stem.replace("_", "-") + "-data"
    return arguments


def drive(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The driver's command."""
    engine = 'data.engine=Ray(address="auto")'
    return ("python3", "-m", "data.main", "--config", arguments.config, engine, *arguments.overrides)


def plan(arguments: argparse.Namespace, folder: Path) -> list[Step]:
    """The files and commands of a target.

    Raises:
      ValueError: an option that the target needs is missing, or a folder that all machines see.
    """
    if arguments.hosts < 1:
        raise ValueError(f"--hosts {arguments.hosts}: expected 1 or more")
    needed = {"tpu-vm": ("tpu", "zone"), "slurm": (), "gke": ("image", "volume")}[arguments.target]
    missing = [f"--{name}" for name in needed if not getattr(arguments, name)]
    if missing:
        raise ValueError(f"{arguments.target} needs {' and '.join(missing)}")
    check_storage(arguments)
    return {"tpu-vm": tpu_vm, "slurm": slurm, "gke": gke}[arguments.target](arguments, folder)


def place(arguments: argparse.Namespace, name: str) -> str | None:
    """What the overrides say of data.path or data.work."""
    given = [text.split("=", 1)[1].strip("'\"") for text in arguments.overrides if text.startswith(f"{name}=")]
    return given[-1].removeprefix("file://") if given else None


def check_storage(arguments: argparse.Namespace) -> None:
    """Raise ValueError unless the overrides name a folder that all machines may see."""
    example = f"{MOUNT}/x" if arguments.target == "gke" else "/mnt/shared/x"
    name, path = "data.path", place(arguments, "data.path")
    if path is None:
        raise ValueError(f"give data.path=..., a folder that all machines see, such as data.path={example}")
    if "://" in path:
        if arguments.hosts == 1:
            return  # works in a folder of its own
        name, kept, path = "data.work", path, place(arguments, "data.work")
        if path in (None, "None"):
            raise ValueError(
                f"data.path={kept} keeps the dataset, but {arguments.hosts} machines work on it in one folder that all "
                f"of them see: give data.work=..., such as data.work={example}"
            )
    if not path or not path.startswith("/"):
        raise ValueError(f"{name}={path}: each machine has a working folder of its own; give a path from the root")
    if arguments.target == "gke" and not f"{path}/".startswith(f"{MOUNT}/"):
        raise ValueError(f"{name}={path} is not on the volume, which pods see at {MOUNT}: give {name}={example}")


def tpu_vm(arguments: argparse.Namespace, folder: Path) -> list[Step]:
    """Copy the code, start Ray on every worker, then the driver on the first; the cluster ends with it."""
    project = (f"--project={arguments.project}",) if arguments.project else ()
    zone = (f"--zone={arguments.zone}", *project)
    gcloud = ("gcloud", "compute", "tpus", "tpu-vm")
    remote = f"sluice/{arguments.name}"

    def on(worker: int, what: str, log: str | None = None) -> Command:
        command = f"--command=bash {remote}/ray.sh {what}"
        argv = (*gcloud, "ssh", arguments.tpu, *zone, f"--worker={worker}", command)
        return Command(argv, log=folder / "logs" / log if log else None)

    workers = range(arguments.hosts)
    files = (str(folder / "code.tar.gz"), str(folder / "ray.sh"))
    scheme = (place(arguments, "data.path") or "").partition("://")[0]
    packages = shlex.join([RAY, *([STORES[scheme]] if scheme in STORES else [])])
    text = TPU_WORKER.format(name=arguments.name, packages=packages, port=PORT, drive=shlex.join(drive(arguments)))
    make = (*gcloud, "ssh", arguments.tpu, *zone, "--worker=all", f"--command=mkdir -p {remote}")
    return [
        File(folder / "ray.sh", text),
        Command((sys.executable, "-m", "launch.pack", files[0])),
        Command(make),
        Command((*gcloud, "scp", *files, f"{arguments.tpu}:{remote}/", *zone, "--worker=all")),
        Together(tuple(on(worker, "start", f"worker-{worker}.log") for worker in workers)),
        on(0, "drive"),
        Together(tuple(on(worker, "stop", f"worker-{worker}-stop.log") for worker in workers)),
    ]


def slurm(arguments: argparse.Namespace, folder: Path) -> list[Step]:
    """One job: Ray's head on the first node, its other nodes, then the driver."""
    logs = (folder / "logs").absolute()
    text = SBATCH.format(
        name=arguments.name,
        hosts=arguments.hosts,
        others=arguments.hosts - 1,
        cpus=arguments.cpus,
        time=arguments.time,
        logs=logs,
        options="".join(f"#SBATCH {option}\n" for option in arguments.sbatch),
        root=shlex.quote(str(Path.cwd())),
        setup=arguments.setup or ":",
        port=PORT,
        drive=shlex.join(drive(arguments)),
    )
    path = folder / "ray.sbatch"
    return [File(path, text), Command(("mkdir", "-p", str(logs))), Command(("sbatch", str(path)))]


def gke(arguments: argparse.Namespace, folder: Path) -> list[Step]:
    """A RayJob of KubeRay: the operator brings the cluster up, runs the driver, and takes the cluster down."""
    path = folder / "rayjob.yaml"
    text = "\n".join(yaml_lines(ray_job(arguments))) + "\n"
    return [File(path, text), Command(("kubectl", "apply", "--filename", str(path)))]


def ray_job(arguments: argparse.Namespace) -> dict:
    """The manifest (KubeRay's RayJob, ray.io/v1)."""
    amounts = {"cpu": str(arguments.cpus), "memory": arguments.memory}
    container = {
        "name": "ray",
        "image": arguments.image,
        "workingDir": "/sluice",
        "resources": {"requests": amounts, "limits": amounts},
        "volumeMounts": [{"name": "data", "mountPath": MOUNT}],
    }
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": arguments.volume}}
    template = {"spec": {"containers": [container], "volumes": [volume]}}
    worker = {
        "groupName": "workers",
        "replicas": arguments.hosts - 1,
        "minReplicas": arguments.hosts - 1,
        "maxReplicas": arguments.hosts - 1,
        "rayStartParams": {},
        "template": template,
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": arguments.name},
        "spec": {
            "entrypoint": shlex.join(drive(arguments)),
            "shutdownAfterJobFinishes": True,
            "backoffLimit": 10,
            "rayClusterSpec": {
                "headGroupSpec": {"rayStartParams": {}, "template": template},
                "workerGroupSpecs": [worker] if arguments.hosts > 1 else [],
            },
        },
    }


def run(argv: Sequence[str]) -> int:
    """The command; its exit code."""
    arguments = parse_arguments(argv)
    steps = plan(arguments, Path(arguments.files or f"runs/launch/{arguments.name}"))
    if arguments.dry_run:
        print(script(steps))
        return 0
    return execute(steps)


def main() -> None:
    """Bad input ends in one line and exit code 1."""
    try:
        code = run(sys.argv[1:])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.exit(code)


if __name__ == "__main__":
    main()
