"""Several processes as one run: where this process stands, jax among them, and which rows of a batch each one loads.

Where a process stands comes from the environment: explicit variables (SLUICE_COORDINATOR, SLUICE_PROCESS_INDEX and
SLUICE_PROCESS_COUNT, or JAX_COORDINATOR_ADDRESS, JAX_PROCESS_INDEX and JAX_PROCESS_COUNT), Slurm's of a job step, or
the metadata of a TPU virtual machine. CPU processes talk over gloo, GPUs over NCCL, TPUs over their own links.
"""

import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from train.meeting import Place, Processes

PORT = 8700  # of process 0 on a TPU slice; jax's service gets the next one. libtpu itself uses 8471 to 8479.
SLURM_PORTS = 20000  # process 0 listens on this + twice the job's number modulo 10,000: jobs on a node do not collide
GATHERED = 4 << 30  # bytes of parameters up to which samples are drawn on one host of several
METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"


def find_place(environ: Mapping[str, str]) -> Place | None:
    """Where this process stands, or None for a run of one process.

    Errors: ValueError where variables are missing, are no numbers or name a place that is none; OSError where a TPU
    machine cannot learn its place.
    """
    place = _explicit(environ) or _slurm(environ) or _tpu(environ)
    if place is not None and not 0 <= place.index < place.count:
        raise ValueError(
            f"this is process {place.index} of {place.count}, by the variables of its machine (TPU_WORKER_ID, "
            "MEGASCALE_SLICE_ID or SLURM_PROCID): expected a number below that"
        )
    return place


def _explicit(environ: Mapping[str, str]) -> Place | None:
    names = ("SLUICE_COORDINATOR", "SLUICE_PROCESS_INDEX", "SLUICE_PROCESS_COUNT")
    if not any(name in environ for name in names):
        names = ("JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_INDEX", "JAX_PROCESS_COUNT")
    given = [name for name in names if name in environ]
    if not given:
        return None
    if len(given) < len(names):
        raise ValueError(
            f"{', '.join(given)} is set, {', '.join(sorted(set(names) - set(given)))} is not: set all three"
        )
    address, index, count = (environ[name] for name in names)
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"{names[1]}={index} and {names[2]}={count}: expected 0 <= index < count")
    return Place(address=address, index=int(index), count=int(count))


def _slurm(environ: Mapping[str, str]) -> Place | None:
    """Of a process that srun started; the batch script itself is in no step of several tasks."""
    count, nodes = int(environ.get("SLURM_STEP_NUM_TASKS", 1)), environ.get("SLURM_STEP_NODELIST", "")
    if count < 2:
        return None
    job, index, local = (environ.get(f"SLURM_{name}", "") for name in ("JOB_ID", "PROCID", "LOCALID"))
    several = "," in environ.get("CUDA_VISIBLE_DEVICES", "")  # the step sees all GPUs of the node: take one
    if not (job.isdigit() and index.isdigit() and (local.isdigit() or not several)):
        raise ValueError(
            f"SLURM_STEP_NUM_TASKS={count} with SLURM_JOB_ID={job!r}, SLURM_PROCID={index!r}, SLURM_LOCALID={local!r}: "
            "expected the numbers that srun sets; unset SLURM_STEP_NUM_TASKS to run one process"
        )
    port = SLURM_PORTS + 2 * (int(job) % 10_000)
    device = int(local) if several else None
    return Place(address=f"{first_host(nodes)}:{port}", index=int(index), count=count, local_device=device)


def first_host(nodes: str) -> str:
    """The first of Slurm's node list: `node01` of `node[01-04,7],other`."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    if match is None:
        raise ValueError(f"SLURM_STEP_NODELIST={nodes!r}: expected names such as node[01-04]")
    return match[1] + (match[2] or "") + (match[3] or "")


def _tpu(environ: Mapping[str, str]) -> Place | None:
    """Of a worker of a TPU slice, or of several slices: from variables (GKE) or the machine's metadata (TPU VM)."""
    hosts, index = environ.get("TPU_WORKER_HOSTNAMES", ""), environ.get("TPU_WORKER_ID", "0")
    slices = {name: environ.get(f"MEGASCALE_{name}") for name in ("COORDINATOR_ADDRESS", "NUM_SLICES", "SLICE_ID")}
    if (
        not hosts
        and [*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")]
        and not environ.get("TPU_SKIP_MDS_QUERY")
    ):
        endpoints, index = _metadata("worker-network-endpoints"), _metadata("agent-worker-number")
        hosts = ",".join(worker.split(":")[-1] for worker in endpoints.split(",") if worker)
        told = dict(re.findall(r"^MEGASCALE_(\w+)\s*:\s*'?([^'\n]*)'?\s*$", _metadata("tpu-env"), re.MULTILINE))
        slices = {name: value or told.get(name) for name, value in slices.items()}
    workers = hosts.split(",")
    count = len(workers) * int(slices["NUM_SLICES"] or 1)
    if count < 2:
        return None
    first = (slices["COORDINATOR_ADDRESS"] or workers[0]).split(":")[0]
    place = int(index or 0) + len(workers) * int(slices["SLICE_ID"] or 0)
    return Place(address=f"{first}:{PORT}", index=place, count=count)


def _metadata(name: str) -> str:
    """An attribute of this Google Cloud machine; "" where there is none, or where it is no such machine.

    A server that is there and does not answer is asked again: a worker of a slice that took itself for the only one
    would keep the others waiting. Errors: OSError where it never answers.
    """
    request = urllib.request.Request(METADATA + name, headers={"Metadata-Flavor": "Google"})
    for pause in (1.0, 2.0, 4.0, 8.0, None):
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.read(1 << 20).decode()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return ""
            problem: Exception = error
        except urllib.error.URLError as error:
            if isinstance(error.reason, socket.gaierror):  # no name of any machine here
                return ""
            problem = error
        except OSError as error:
            problem = error
        if pause is not None:
            time.sleep(pause)
    raise OSError(
        f"this machine has TPUs and its metadata server does not say of which slice ({problem}): start again, or set "
        "TPU_SKIP_MDS_QUERY=1 to run on this machine alone"
    )


def start_jax(processes: Processes) -> None:
    """jax among the processes: from here on `jax.devices()` are those of all of them."""
    place = processes.place
    if place is None or place.count == 1:
        return
    jax.distributed.initialize(
        processes.jax_address,
        place.count,
        place.index,
        local_device_ids=place.local_device,
        cluster_detection_method="deactivate",
        initialization_timeout=int(max(processes.config.join, 60)),
        heartbeat_timeout_seconds=int(max(100, 4 * processes.config.silent)),  # ours speaks first, and says more
    )


def gathered(params: Any) -> Any:
    """All parameters whole on every host, as numpy arrays; None where they take more than GATHERED bytes."""
    if sum(leaf.nbytes for leaf in jax.tree.leaves(params)) > GATHERED:
        return None
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(params, tiled=True)


def rows_here(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """The rows of a global batch, in order, that the devices of this process hold some part of."""
    places = sharding.addressable_devices_indices_map((batch_size, sharding.mesh.shape["context"]))
    rows = [np.arange(batch_size)[index[0]] for index in places.values() if index is not None]
    return np.unique(np.concatenate(rows))


def to_global(batch: Mapping[str, np.ndarray], sharding: NamedSharding, rows: np.ndarray, batch_size: int) -> dict:
    """This process's `rows` as its part of the global batch; arrays are [rows, ...], global ones [batch_size, ...]."""

    def whole(local: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:  # a slice for each dim
            first, last, _ = index[0].indices(batch_size)
            return local[np.searchsorted(rows, first) : np.searchsorted(rows, last), *index[1:]]

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, part)

    return {name: whole(local) for name, local in batch.items()}
