"""The one shape that every data stage has, so that a config composes them freely.

A stage is a frozen dataclass: its fields are its settings, `run` does the work.

    Clean -> ExactDedup -> NearDedup -> HeldOut -> Decontaminate        (each a value in `DataConfig.stages`)

`run(inputs, output, engine)` reads document shards (Parquet, see data.tables), writes whole shards into

    output/kept/NNNNN.parquet       documents that go on, in the order of the inputs
    output/dropped/NNNNN.parquet    documents removed here, each with step, reason, value, threshold, partner

and returns its `Counts`. `data.build` gives it the folder, checks the books and renames the folder when it is whole.
After a kill the same folder comes again with what was whole by then: a file under its final name need not be made
again, and `map_documents` sees to that. `output/scratch` and `output/done` are removed when the stage is whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol
from uuid import uuid4

from data.document import Document, Drop, Dropped
from data.engine import Engine
from data.strikes import KILLED, MAX_DEATHS, STRIKES, watched
from data.tables import open_documents, open_dropped, read_documents, write_json

NOT_IN_KEY = {"in_key": False}  # dataclasses.field(metadata=NOT_IN_KEY): a setting that never changes what is written

Transform = Callable[[Iterator[Document]], Iterable[Document | Dropped]]


@dataclass(frozen=True, slots=True)
class Counts:
    """The books of one stage or shard: kept + dropped = read + created."""

    read: int = 0
    created: int = 0
    kept: int = 0
    dropped: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.read + other.read,
            self.created + other.created,
            self.kept + other.kept,
            self.dropped + other.dropped,
        )

    @property
    def balanced(self) -> bool:
        """Whether every document that came in is accounted for."""
        return self.kept + self.dropped == self.read + self.created


class Stage(Protocol):
    """A frozen dataclass with settings as fields.

    name: how folders, reports and `data.explain` call it.
    version: raised by hand whenever the code of `code_modules` changes what is written (a test watches).
    code_modules: the modules whose code shapes its bytes.
    libraries: distributions whose version shapes its bytes; they enter the stage key.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    code_modules: ClassVar[tuple[str, ...]]
    libraries: ClassVar[tuple[str, ...]]

    def run(self, inputs: Sequence[Path], output: Path, engine: Engine) -> Counts:
        """Read the input shards, write output/kept and output/dropped, return the books."""
        ...


def map_documents(transform: Transform, inputs: Sequence[Path], output: Path, engine: Engine, *, label: str) -> Counts:
    """Run a stage that looks at one shard at a time: shard i of the inputs becomes kept/i and dropped/i.

    transform: takes the documents of a shard as a stream and yields each one again, as a `Document` (goes on) or as a
        `Dropped`; it pickles (a module-level function, a functools.partial of one, or a frozen dataclass that is
        called). Memory is bounded by what it holds. It makes no documents: those that do, count `created` themselves.
    Shards that an interrupted run left whole are not done again. A document that kills its process again and again is
    dropped with reason `killed_worker` (see data.strikes), the others of its shard go on.
    """
    tasks = [(path, index) for index, path in enumerate(inputs)]
    fn = partial(_map_shard, transform=transform, output=output, label=label, build=uuid4().hex)
    books = engine.map_shards(fn, tasks, label=label, documents=_documents_read, deaths=MAX_DEATHS, twice=True)
    return sum(books, Counts())


def map_documents_with(
    build: Callable[[], Any],
    transform: Callable[[Iterator[Document], Any], Iterable[Document | Dropped]],
    inputs: Sequence[Path],
    output: Path,
    engine: Engine,
    *,
    label: str,
) -> Counts:
    """As `map_documents` with transform(documents, model), for a model that build() makes where it will run.

    A shard whose process dies twice is probed a document at a time, as data.strikes says.
    """
    tasks = [(path, index) for index, path in enumerate(inputs)]
    fn = partial(_map_shard_with, transform=transform, output=output, label=label)
    books = engine.map_with(build, fn, tasks, label=label, documents=_documents_read, deaths=MAX_DEATHS)
    return sum(books, Counts())


def shard_name(index: int) -> str:
    """The file name of the shard at this place in its stage."""
    return f"{index:05d}.parquet"


def done_counts(output: Path, index: int) -> Counts | None:
    """The books of a shard that an earlier run of this stage left whole, or None."""
    path = output / "done" / f"{index:05d}.json"
    return Counts(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def mark_done(output: Path, index: int, counts: Counts) -> None:
    """Note that every file of a shard is whole, with its books; called last."""
    path = output / "done" / f"{index:05d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(counts))


def _map_shard(
    task: tuple[Path, int], *, transform: Transform, output: Path, label: str, build: str, batched: bool = False
) -> Counts:
    """One shard; build: a name of this run of the stage, within which deaths are counted. batched: as a model does."""
    path, index = task
    done = done_counts(output, index)
    if done is not None:
        return done
    with ExitStack() as stack:
        for name in ("kept", "dropped", "scratch"):
            (output / name).mkdir(parents=True, exist_ok=True)
        strikes = stack.enter_context(watched(output / "scratch" / f"{index:05d}.{build}.strikes"))
        if batched:
            strikes.probe(read_documents(path), partial(_alone, transform))
        kept = stack.enter_context(open_documents(output / "kept" / shard_name(index)))
        dropped = stack.enter_context(open_dropped(output / "dropped" / shard_name(index)))
        read = 0

        def documents() -> Iterator[Document]:
            nonlocal read
            for document in read_documents(path):
                read += 1
                if strikes.out(read):
                    dropped.write(Dropped(document, label, Drop(KILLED, STRIKES, STRIKES)))
                else:
                    if not batched:
                        strikes.note(read)
                    yield document

        for result in transform(documents()):
            if isinstance(result, Dropped):
                dropped.write(result)
            else:
                kept.write(result)
    counts = Counts(read=read, kept=kept.count, dropped=dropped.count)
    if not counts.balanced:
        raise ValueError(f"{path}: kept {counts.kept} + dropped {counts.dropped} is not read {counts.read}")
    mark_done(output, index, counts)
    return counts


def _alone(transform: Transform, document: Document) -> None:
    for _ in transform(iter([document])):
        pass


def _map_shard_with(task: tuple[Path, int], model: Any, *, transform: Any, output: Path, label: str) -> Counts:
    given = partial(_given, transform, model)
    return _map_shard(task, transform=given, output=output, label=label, build="model", batched=True)


def _given(transform: Any, model: Any, documents: Iterator[Document]) -> Iterable[Document | Dropped]:
    return transform(documents, model)


def _documents_read(counts: Counts) -> int:
    return counts.read
