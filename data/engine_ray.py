"""A Ray cluster as engine: the same stages, the same bytes, on as many machines as there are (engine_ray.md says when).

    python -m data.main --config configs/x.py 'data.engine=Ray(address="auto")'

Ray (Moritz et al. 2018) is only the scheduler: it starts shards and models on machines and notices when they die. What
is shuffled goes through sorted files on storage that all machines see. This is the one module that imports Ray, and
only when a session begins.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from data.pool import pickled_function
from data.ray_hands import RayActors, RayTasks, call_with_model
from data.scheduler import MAX_ATTEMPTS, Progress, collect, schedule

S = TypeVar("S")
R = TypeVar("R")
M = TypeVar("M")

CONNECT_SECONDS = 10.0  # until an address that does not answer is given up
PROBE_SECONDS = 120.0  # until a machine must have said what it has: the first worker there loads its libraries
_ROOT = Path(__file__).resolve().parent.parent
_ROOMS = ("data", "models", "train", "configs")  # the packages that a worker may need


@dataclass(frozen=True, kw_only=True)
class Ray:
    """A running Ray cluster; the driver is the process that builds the dataset.

    address: "auto" for the cluster that this machine belongs to, or HOST:PORT of its head.
    cpus: CPUs that a shard takes. memory_bytes: memory that a shard takes, None to leave that to chance.
    model_resources: what one model takes, such as (("TPU", 1.0),) or (("GPU", 1.0),); by default `cpus`.
    max_models: models at once at most; None for as many as the cluster has room for.
    ship_code: send the packages of this repository to the workers; False where all machines see this very folder.
    """

    address: str = "auto"
    cpus: float = 1.0
    memory_bytes: int | None = None
    model_resources: tuple[tuple[str, float], ...] = ()
    max_models: int | None = None
    ship_code: bool = True

    def __post_init__(self) -> None:
        if self.cpus <= 0:
            raise ValueError(f"Ray: cpus must be above 0, got {self.cpus}")
        if self.max_models is not None and self.max_models < 1:
            raise ValueError(f"Ray: max_models must be at least 1 or None, got {self.max_models}")

    def map_shards(self, fn: Callable[[S], R], shards: Sequence[S], **options: Any) -> list[R]:
        """As `Engine.map_shards`, in a session of its own."""
        with self.session() as engine:
            return engine.map_shards(fn, shards, **options)

    def map_with(self, build: Callable[[], M], fn: Callable[[S, M], R], shards: Sequence[S], **options: Any) -> list[R]:
        """As `Engine.map_with`, in a session of its own."""
        with self.session() as engine:
            return engine.map_with(build, fn, shards, **options)

    @contextmanager
    def session(self, folder: Path | None = None, libraries: Sequence[str] = ()) -> Iterator[_Cluster]:
        """The cluster, after a look at every machine of it.

        folder: of the dataset: each machine must see it. libraries: distributions whose versions must be the driver's.
        Raises ValueError in one line: no cluster there, another Python or library on a machine, no common storage.
        """
        ray = import_ray()
        joined = connect(ray, self)
        try:
            cluster = _Cluster(ray, self)
            cluster.check_machines(folder, libraries)
            yield cluster
        finally:
            if joined:
                ray.shutdown()


def import_ray() -> Any:
    """The library, or one line that says how to get it."""
    try:
        import ray
    except ImportError as error:
        raise ValueError(f"data.engine=Ray needs Ray: pip install 'ray>=2.40' ({error})") from None
    return ray


def connect(ray: Any, config: Ray) -> bool:
    """Join the cluster; False where this process had joined it before."""
    if ray.is_initialized():
        return False
    if config.address != "auto":
        _reach(config.address)
    environment: dict[str, Any] = {"env_vars": {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}}
    if config.ship_code:
        environment["py_modules"] = [str(_ROOT / room) for room in _ROOMS if (_ROOT / room).is_dir()]
        environment["excludes"] = ["__pycache__"]
    else:
        environment["env_vars"]["PYTHONPATH"] = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
    try:
        ray.init(address=config.address, runtime_env=environment, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"no Ray cluster could be joined at {config.address!r}: {reason}") from None
    return True


def _reach(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"Ray: address {address!r} is neither 'auto' nor HOST:PORT, such as 10.0.0.2:6379")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        start = "start it with 'ray start --head', or bring one up with launch.ray_cluster"
        raise ValueError(f"no Ray cluster at {address}: {error}; {start}") from None


class _Cluster:
    """The engine of one session."""

    def __init__(self, ray: Any, config: Ray):
        self._ray, self._config = ray, config

    def map_shards(
        self,
        fn: Callable[[S], R],
        shards: Sequence[S],
        *,
        label: str,
        documents: Callable[[R], int] | None = None,
        deaths: int = MAX_ATTEMPTS,
        twice: bool = False,
    ) -> list[R]:
        """As `Engine.map_shards`."""
        shards = list(shards)
        with Progress(label, shards, documents) as progress:
            hands = RayTasks(self._ray, self._config, pickled_function(fn, label), shards)
            return collect(schedule(hands, shards, label, progress, deaths=deaths, twice=twice), progress)

    def map_with(
        self,
        build: Callable[[], M],
        fn: Callable[[S, M], R],
        shards: Sequence[S],
        *,
        label: str,
        documents: Callable[[R], int] | None = None,
        deaths: int = MAX_ATTEMPTS,
    ) -> list[R]:
        """As `Engine.map_with`: actors that live as long as the call, each with the model that build() made in it."""
        shards = list(shards)
        with Progress(label, shards, documents) as progress:
            work = pickled_function(partial(call_with_model, build=build, fn=fn), label)
            hands = RayActors(self._ray, self._config, pickled_function(build, label), work, shards)
            try:
                return collect(schedule(hands, shards, label, progress, deaths=deaths), progress)
            finally:
                hands.close()

    def check_machines(self, folder: Path | None, libraries: Sequence[str]) -> None:
        """Raise ValueError for the machines that would not write the same bytes, or not to the same place."""
        ray = self._ray
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        mark = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            mark = folder / f"seen-by-all.{uuid.uuid4().hex}.tmp"
            mark.write_text("", encoding="utf-8")
        try:
            machines = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
            if not machines:
                raise ValueError(f"the Ray cluster at {self._config.address!r} has no machine with a CPU for work")
            probe = ray.remote(num_cpus=0, max_retries=2)(_probe)
            found = []  # by machine, of which several may have one address
            for node in machines:
                there = strategy(node_id=node["NodeID"], soft=False)
                asked = probe.options(scheduling_strategy=there).remote(mark, tuple(libraries))
                found.append((node["NodeManagerAddress"], asked))
            here = _probe(mark, tuple(libraries))
            wrong = [line for name, ref in found for line in self._differences(name, ref, here, folder)]
        finally:
            if mark is not None:
                mark.unlink(missing_ok=True)
        if wrong:
            raise ValueError("; ".join(dict.fromkeys(wrong)))

    def _differences(self, machine: str, ref: Any, here: dict[str, Any], folder: Path | None) -> list[str]:
        """What a machine has that the driver has not, in words."""
        try:
            there = self._ray.get(ref, timeout=PROBE_SECONDS)
        except self._ray.exceptions.TaskUnschedulableError:
            return []  # it left the cluster since it was listed
        except Exception as error:
            return [f"machine {machine} of the cluster does not answer: {' '.join(str(error).split())[:200]}"]
        lines = []
        if not there["sees"]:
            where = "" if folder is None or folder.is_absolute() else ", by a path from the root"
            lines.append(
                f"machine {machine} does not see {folder}: set data.path (or data.work) to a folder on "
                f"storage that all machines share{where}"
            )
        for name, version in here["versions"].items():
            other = there["versions"][name]
            if other != version:
                lines.append(f"machine {machine} has {name} {other}, the driver {version}: install the same everywhere")
        return lines


def _probe(mark: Path | None, libraries: tuple[str, ...]) -> dict[str, Any]:
    """What this machine has; runs on each."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in libraries:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {"versions": versions, "sees": mark is None or mark.exists()}
