"""Google Kubernetes Engine: a container image with the code, and a JobSet that starts it on every host of the slices.

A run that exits with 75 is started again and never counted; one that crashes, `--restarts` times.
"""

import json
import re
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path

from launch.job import STOPPED, Job
from launch.steps import Command, File, Step

DOCKERFILE = """\
FROM python:3.12-slim
WORKDIR /sluice
COPY requirements.txt requirements.txt
COPY launch/requirements-{kind}.txt launch/requirements-{kind}.txt
RUN pip install --no-cache-dir -r launch/requirements-{kind}.txt
COPY . .
ENV SLUICE_COMMIT={commit}
"""
MOUNT = "/data"  # where the pods see the volume
GRACE_SECONDS = 300  # between SIGTERM and the end of a pod: the time to save in


def add_arguments(parser: ArgumentParser) -> None:
    """Options of `gke`."""
    parser.add_argument("--image", required=True, help="the container image: REGISTRY/NAME:TAG")
    parser.add_argument("--ready", action="store_true", help="the image is there: do not build and push it")
    parser.add_argument("--namespace", default="default", help="Kubernetes namespace")
    parser.add_argument("--volume", metavar="CLAIM", help=f"a ReadWriteMany volume claim, mounted at {MOUNT}")
    parser.add_argument("--spot", action="store_true", help="on spot nodes")
    parser.add_argument("--service-account", metavar="NAME", help="Kubernetes service account of the pods")


def steps(job: Job, arguments: Namespace, folder: Path) -> list[Step]:
    """Build and push the image from the packed code, then apply the JobSet."""
    if job.machine is None:
        raise ValueError("gke needs --machine CHIP:SHAPE, such as v6e:4x4 or h100:16")
    check_kept(job, arguments.volume)
    jobset = folder / "jobset.yaml"
    apply: list[Step] = [
        File(jobset, jobset_yaml(job, arguments)),
        Command(("kubectl", "apply", "--filename", str(jobset))),
    ]
    if arguments.ready:
        return apply
    archive, context = folder / "code.tar.gz", folder / "image"
    return [
        File(folder / "Dockerfile", DOCKERFILE.format(kind=job.machine.about.kind, commit=job.commit)),
        Command((sys.executable, "-m", "launch.pack", str(archive))),
        Command(("rm", "-rf", str(context))),  # a file that is no longer in the code would stay
        Command(("mkdir", "-p", str(context))),
        Command(("tar", "-xzf", str(archive), "-C", str(context))),
        Command(("docker", "build", "--tag", arguments.image, "--file", str(folder / "Dockerfile"), str(context))),
        Command(("docker", "push", arguments.image)),
        *apply,
    ]


def check_kept(job: Job, volume: str | None) -> None:
    """Refuses checkpoints on a pod's own disk: every restart makes new pods, and begins with an empty one."""
    job.check_shared()
    place = job.place()
    if "://" not in place and not (volume and place.startswith(f"{MOUNT}/")):
        raise ValueError(
            f"checkpoints in {place} would be on a pod's own disk, which a restart empties: add "
            f"checkpoint.path=gs://BUCKET/FOLDER, or --volume CLAIM and run_dir={MOUNT}/FOLDER"
        )


def jobset_yaml(job: Job, arguments: Namespace) -> str:
    """The JobSet as YAML: one Job a slice, one pod a host."""
    machine = job.machine
    assert machine is not None
    tpu = machine.about.kind == "tpu"
    chips = min(machine.chips, machine.about.whole if machine.hosts == 1 else machine.about.host)
    selector: dict[str, str] = (
        {
            "cloud.google.com/gke-tpu-accelerator": machine.about.gke,
            "cloud.google.com/gke-tpu-topology": "x".join(map(str, machine.shape)),
        }
        if tpu
        else {"cloud.google.com/gke-accelerator": machine.about.gke}
    )
    if arguments.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    given = replace(job, commit="").variables()  # the image knows which code it has
    variables = [{"name": name, "value": literal(value)} for name, value in given.items()]
    if not tpu and machine.hosts > 1:  # a TPU slice knows its hosts; GPU hosts meet at the first pod
        index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
        variables += [
            {"name": "SLUICE_COORDINATOR", "value": f"{job.name}-slice-0-0.{job.name}:8476"},
            {"name": "SLUICE_PROCESS_COUNT", "value": str(machine.hosts)},
            {"name": "SLUICE_PROCESS_INDEX", "valueFrom": index},  # type: ignore[dict-item]
        ]
    container = {
        "name": "train",
        "image": arguments.image,
        "command": [literal(word) for word in job.command()],
        "env": variables,
        "resources": {"limits": {"google.com/tpu" if tpu else "nvidia.com/gpu": chips}},
        **({"volumeMounts": [{"name": "data", "mountPath": MOUNT}]} if arguments.volume else {}),
    }
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": arguments.volume}}
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "nodeSelector": selector,
        **({"serviceAccountName": arguments.service_account} if arguments.service_account else {}),
        "containers": [container],
        **({"volumes": [volume]} if arguments.volume else {}),
    }
    stopped = {"containerName": "train", "operator": "In", "values": [STOPPED]}
    slice_job = {
        "backoffLimit": 0,
        "completionMode": "Indexed",
        "completions": machine.hosts,
        "parallelism": machine.hosts,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": stopped}]},
        "template": {"spec": pod},
    }
    again = {"action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"]}
    manifest = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": job.name,
            "namespace": arguments.namespace,
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": job.name},
            "failurePolicy": {"maxRestarts": job.restarts, "rules": [again]},
            "replicatedJobs": [{"name": "slice", "replicas": machine.slices, "template": {"spec": slice_job}}],
        },
    }
    return "\n".join(yaml_lines(manifest)) + "\n"


def literal(text: str) -> str:
    """The text as Kubernetes must have it in a command or a variable, where it puts values for $(NAME) and $ for $$."""
    return re.sub(r"\$(?=[$(])", "$$", text)


def yaml_lines(value: object, indent: str = "") -> list[str]:
    """YAML of dicts, lists and scalars. Strings are written as JSON writes them, which YAML reads the same way."""
    if isinstance(value, dict) and value:
        lines = []
        for key, item in value.items():
            inner = yaml_lines(item, indent + "  ")
            nested = isinstance(item, dict | list) and item
            lines += [f"{indent}{key}:", *inner] if nested else [f"{indent}{key}: {inner[0].strip()}"]
        return lines
    if isinstance(value, list) and value:
        lines = []
        for item in value:
            inner = yaml_lines(item, indent + "  ")
            lines += [f"{indent}- {inner[0].strip()}", *inner[1:]]
        return lines
    return [indent + json.dumps(value)]
