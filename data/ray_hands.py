"""The hands of a Ray cluster for the scheduler: tasks for shards, actors for models.

Nothing here imports Ray: the module is handed in by `data.engine_ray`, which says what may be missing.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any, Protocol

from data.scheduler import Answer, Trouble
from data.worker import WORKERS, failure

LOAD_ANSWER_SECONDS = 10  # within which Ray says what became of the loading of a model whose process has died


class RayNeeds(Protocol):
    """What a shard and a model take; `data.engine_ray.Ray` has it."""

    @property
    def cpus(self) -> float:
        """CPUs of a shard."""
        ...

    @property
    def memory_bytes(self) -> int | None:
        """Memory of a shard, where it is to be reserved."""
        ...

    @property
    def model_resources(self) -> tuple[tuple[str, float], ...]:
        """Ray's resources of a model, as (name, amount); empty: `cpus`."""
        ...

    @property
    def max_models(self) -> int | None:
        """Most actors with a model; None: as many as the cluster holds."""
        ...


class _Owed:
    """Answers that Ray owes: what tasks and actors have in common."""

    def __init__(self, ray: Any, shards: Sequence[Any]):
        self._ray, self._shards = ray, shards
        self._tickets: dict[Any, int] = {}  # by reference

    def wait(self, seconds: float | None) -> Sequence[Answer]:
        """As `Hands.wait`."""
        refs = list(self._tickets)
        ready, rest = self._ray.wait(refs, num_returns=1, timeout=seconds)
        if ready and rest:
            ready += self._ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        return [self._answer(ref) for ref in ready]

    def _answer(self, ref: Any) -> Answer:
        ticket = self._tickets.pop(ref)
        try:
            result, trouble = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            why = " (out of memory?)" if "OOM" in str(error) else ""  # among the causes that Ray lists
            return Answer(ticket, trouble=Trouble(f"{type(error).__name__}: {line.strip()[:200]}{why}", died=True))
        return Answer(ticket, pickle.loads(result)) if trouble is None else Answer(ticket, trouble=Trouble(*trouble))

    def _ref_of(self, ticket: int) -> Any:
        ref = next(ref for ref, other in self._tickets.items() if other == ticket)
        del self._tickets[ref]
        return ref


class RayTasks(_Owed):
    """Hands that are Ray tasks, as many at a time as the cluster has CPUs for now."""

    def __init__(self, ray: Any, config: RayNeeds, function: bytes, shards: Sequence[Any]):
        super().__init__(ray, shards)
        memory = {} if config.memory_bytes is None else {"memory": config.memory_bytes}
        self._needs = {"CPU": config.cpus, **memory}
        room(ray, self._needs, "a shard", "cpus and memory_bytes")
        self._function = ray.put(function)
        self._task = ray.remote(num_cpus=config.cpus, max_retries=0, **memory)(_work)

    def free(self) -> int:
        """As `Hands.free`; the cluster may grow while it works."""
        return self._slots() - len(self._tickets)

    def _slots(self) -> int:
        return max(1, _places(self._ray, self._needs))

    def start(self, ticket: int, index: int) -> None:
        """As `Hands.start`."""
        workers = min(self._slots(), len(self._shards))
        self._tickets[self._task.remote(self._function, pickle.dumps(self._shards[index]), workers)] = ticket

    def stop(self, ticket: int) -> None:
        """As `Hands.stop`; the task is killed."""
        if ticket in self._tickets.values():
            self._ray.cancel(self._ref_of(ticket), force=True)


class RayActors(_Owed):
    """Hands that are actors with a model each; one that dies is replaced."""

    def __init__(self, ray: Any, config: RayNeeds, build: bytes, function: bytes, shards: Sequence[Any]):
        super().__init__(ray, shards)
        self._build, self._function = ray.put(build), ray.put(function)
        needs = dict(config.model_resources) or {"CPU": config.cpus}
        named = {"CPU": "num_cpus", "GPU": "num_gpus"}
        options: dict[str, Any] = {named[name]: amount for name, amount in needs.items() if name in named}
        options |= {"resources": {name: amount for name, amount in needs.items() if name not in named}}
        self._actor = ray.remote(**{"num_cpus": 0, **options})(_ModelActor)
        places = room(ray, needs, "a model", "model_resources")
        self._room = min(places, len(shards), config.max_models or places)
        self._idle: list[Any] = []
        self._busy: dict[int, Any] = {}
        self._loads: dict[Any, Any] = {}  # by actor: what is there when its model is whole

    def free(self) -> int:
        """As `Hands.free`."""
        return self._room - len(self._busy)

    def start(self, ticket: int, index: int) -> None:
        """As `Hands.start`, on an actor that has its model where one is idle."""
        if self._idle:
            actor = self._idle.pop()
        else:
            actor = self._actor.remote()
            self._loads[actor] = actor.load.remote(self._build)
        self._busy[ticket] = actor
        self._tickets[actor.work.remote(self._function, pickle.dumps(self._shards[index]))] = ticket

    def wait(self, seconds: float | None) -> Sequence[Answer]:
        """As `Hands.wait`."""
        answers = list(super().wait(seconds))
        for place, answer in enumerate(answers):
            actor = self._busy.pop(answer.ticket)
            if answer.trouble is None or not answer.trouble.died:
                self._idle.append(actor)
                continue
            if not self._was_whole(actor):
                line = f"{answer.trouble.line}, while its model was loaded"
                answers[place] = replace(answer, trouble=replace(answer.trouble, line=line, loading=True))
            self._ray.kill(actor)
        return answers

    def _was_whole(self, actor: Any) -> bool:
        """Whether an actor that died had its model."""
        try:
            self._ray.get(self._loads.pop(actor), timeout=LOAD_ANSWER_SECONDS)
        except self._ray.exceptions.RayError:
            return False
        return True

    def stop(self, ticket: int) -> None:
        """As `Hands.stop`; the actor is killed, with its model."""
        if ticket in self._busy:
            self._ref_of(ticket)
            actor = self._busy.pop(ticket)
            del self._loads[actor]
            self._ray.kill(actor)

    def close(self) -> None:
        """End all actors."""
        for actor in (*self._idle, *self._busy.values()):
            self._ray.kill(actor)


def room(ray: Any, needs: Mapping[str, float], what: str, setting: str) -> int:
    """How many of these fit on the machines that are there; ValueError in one line where none does: Ray would wait."""
    places = _places(ray, needs)
    if not places:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        most = {name: max(machine.get(name, 0) for machine in machines) for name in needs}
        asked, found = (", ".join(f"{name} {amount:g}" for name, amount in each.items()) for each in (needs, most))
        raise ValueError(
            f"Ray: {what} needs {asked} of one machine; the most that any has is {found}: change {setting}"
        )
    return places


def _places(ray: Any, needs: Mapping[str, float]) -> int:
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(m.get(name, 0) / amount + 1e-9) for name, amount in needs.items()) for m in machines)


def _work(function: bytes, shard: bytes, workers: int = 1) -> tuple[bytes | None, tuple[str, int | None, str] | None]:
    """What a worker does with a shard, beside so many: (result, failure), both as `data.worker` has them."""
    os.environ[WORKERS] = str(workers)
    try:
        return pickle.dumps(_loaded(function)(pickle.loads(shard))), None
    except Exception as error:
        return None, failure(error)


@lru_cache(maxsize=4)
def _loaded(function: bytes) -> Callable[..., Any]:
    return pickle.loads(function)


class _ModelActor:
    """A process that keeps a model between shards."""

    def load(self, build: bytes) -> None:
        """Make the model before the first shard; what it raises is raised there again, where it is told."""
        with suppress(Exception):
            _model(_loaded(build))

    def work(self, function: bytes, shard: bytes) -> tuple[bytes | None, tuple[str, int | None, str] | None]:
        return _work(function, shard)


def call_with_model(shard: Any, *, build: Callable[[], Any], fn: Callable[[Any, Any], Any]) -> Any:
    """`fn` on a shard and the model, which the process keeps from shard to shard."""
    return fn(shard, _model(build))


_MODELS: dict[bytes, Any] = {}  # of this process, by the bytes of what builds it: one, as an actor has one function


def _model(build: Callable[[], Any]) -> Any:
    key = pickle.dumps(build)
    if key not in _MODELS:
        _MODELS.clear()
        _MODELS[key] = build()
    return _MODELS[key]
