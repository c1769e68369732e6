"""Augment: more training documents out of those that are there, each with its lineage, each past the gates.

    stages=(..., HeldOut(), Augment(technique=Synonyms(...), factors=(("prose", 1.5),)), Decontaminate())

One stage for each technique. It asks, in this order: what may be augmented, and is there budget (every shard is
surveyed); what comes out, and does it pass the gates (the pool for rules, the driver for models); is it new, and is
there still budget (over the whole corpus); and writes every copy behind its parent, every rejection with its reason.

It stands behind NearDedup, which would take copies for duplicates, and before Decontaminate, which looks at them too.
Copies are never made of held-out documents, nor of copies. A copy keeps its parent's source, group and side. What a
killed run has finished is not done again, `chunk` documents at a time. Attempts at a document that kills its process
are rejections with reason `killed_worker` (see data.strikes); the document itself stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import numpy as np
from tqdm import tqdm

from data.augment.attempts import PASSED, STEP, Family, attempt, families, nothing_drawn
from data.augment.gates import Gates
from data.augment.plan import (
    LINEAGE,
    Dose,
    below,
    content_key,
    first_too_many,
    load_arrays,
    save_arrays,
    survey_shard,
    tokens_of,
    uint64,
    verdicts,
)
from data.augment.technique import Rewriter, Technique
from data.document import Drop, Dropped
from data.engine import Engine
from data.keys import library_versions
from data.stage import Counts, done_counts, mark_done, shard_name
from data.strikes import KILLED, MAX_DEATHS, STRIKES, Strikes, watched
from data.tables import open_documents, open_dropped, read_documents, read_dropped, write_dropped

VERSION = 2
CODE_MODULES = (
    *(f"data.augment.{name}" for name in ("attempts", "facts", "gates", "plan", "sentences", "stage", "technique")),
    *(
        f"data.augment.{name}"
        for name in ("masked", "paraphrase", "reorder", "synonyms", "tagger", "translate", "wordnet")
    ),
    "data.clean.language",
    "data.features",
)


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Add copies of training documents, made by one technique.

    technique: `Reorder`, `Synonyms`, `MaskedReplacement`, `BackTranslation` or `Paraphrase` of data.augment.
    factor: documents after over documents before, for sources that `factors` does not name: 1.0 makes no copy, 1.5 one
        of every second document, 3.0 two of each. Rejected copies are not replaced.
    token_budget: tokens (4 UTF-8 bytes each) of text that this stage adds at most; None for no limit.
    gates: what a copy must pass; None for those that suit the technique. seed: another seed, other copies.
    longest: characters of the longest text that is tried. chunk: documents worked on between two notes on disk.
    """

    technique: Technique
    factor: float = 1.0
    factors: tuple[tuple[str, float], ...] = ()
    token_budget: int | None = None
    gates: Gates | None = None
    seed: int = 0
    longest: int = 50_000
    chunk: int = 256

    name: ClassVar[str] = "augment"
    version: ClassVar[int] = VERSION
    code_modules: ClassVar[tuple[str, ...]] = CODE_MODULES
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "py3langid", "pyarrow", "xxhash")

    def __post_init__(self) -> None:
        for name, factor in (("factor", self.factor), *self.factors):
            if factor < 1:
                raise ValueError(f"Augment: factor of {name} is {factor}: expected 1.0 (no copies) or more")
        if self.token_budget is not None and self.token_budget < 0:
            raise ValueError(f"Augment: token_budget is {self.token_budget}: expected 0 or more, or None")
        if self.chunk < 1:
            raise ValueError(f"Augment: chunk is {self.chunk}: expected at least one document")

    @property
    def recipes(self) -> tuple[tuple[str, float], ...]:
        """(source, factor): `DataConfig` checks that there are such sources."""
        return self.factors

    def inputs_key(self) -> Any:
        """The files that the technique reads, and the versions of its libraries."""
        return [self.technique.inputs_key(), library_versions(self.technique.libraries)]

    @property
    def dose(self) -> Dose:
        """How often each document is augmented."""
        return Dose(technique=self.technique.name, seed=self.seed, factor=self.factor, factors=self.factors)

    def run(self, inputs: Sequence[Path], output: Path, engine: Engine) -> Counts:
        """As `Stage.run`: a survey of all shards, the copies, which of them the budget keeps, and then the shards."""
        scratch = output / "scratch"
        tasks = [(path, index) for index, path in enumerate(inputs)]
        if not (scratch / "verdicts.npz").exists():
            self._survey(tasks, scratch, engine)
            self._make(tasks, scratch, engine)
            _settle(scratch, len(tasks), self.token_budget)
        write = partial(_write_shard, scratch=scratch, output=output)
        return sum(engine.map_shards(write, tasks, label=self.name, documents=_documents_read), Counts())

    def _survey(self, tasks: Sequence[tuple[Path, int]], scratch: Path, engine: Engine) -> None:
        """Content keys of everything that comes in, the attempts, and from which seed on the budget is spent."""
        if (scratch / "plan.npz").exists():
            return
        folder = scratch / "survey"
        work = partial(survey_shard, dose=self.dose, folder=folder)
        engine.map_shards(work, tasks, label=f"{self.name}: survey")
        parts = [load_arrays(folder / f"{index:05d}.npz") for _, index in tasks]
        keys = np.unique(np.concatenate([part["keys"] for part in parts])) if parts else uint64([])
        attempts = np.concatenate([part["attempts"] for part in parts]) if parts else uint64([]).reshape(0, 2)
        limit = first_too_many(attempts[:, 0], attempts[:, 1], self.token_budget)
        planned = attempts[below(attempts[:, 0], limit)]
        figures = uint64([min(limit, 2**64 - 1), planned[:, 1].sum(), len(planned)])
        save_arrays(scratch / "plan.npz", keys=keys, figures=figures)

    def _make(self, tasks: Sequence[tuple[Path, int]], scratch: Path, engine: Engine) -> None:
        """All attempts: in pool workers, or here where the technique needs a model."""
        limit, tokens, number = (int(value) for value in load_arrays(scratch / "plan.npz")["figures"])
        label = f"{self.name}: {self.technique.name}, {tokens:,} tokens"
        work = partial(attempt_shard, stage=self, limit=limit, scratch=scratch)
        if not self.technique.in_driver:
            work = partial(work, life=uuid4().hex)
            engine.map_shards(work, tasks, label=label, documents=_first, deaths=MAX_DEATHS, twice=True)
            return
        todo = [task for task in tasks if not _shard_done(scratch, task[1])]
        build = self.technique.build if number else _build_nothing
        engine.map_with(build, work, todo, label=label, documents=_first, deaths=MAX_DEATHS)


def attempt_shard(
    task: tuple[Path, int],
    rewriter: Rewriter | None = None,
    *,
    stage: Augment,
    limit: int,
    scratch: Path,
    life: str = "model",
) -> tuple[int, int]:
    """Make a shard's attempts, `chunk` families a file; (attempts, files). Chunks that are there are left alone.

    rewriter: of a technique that needs a model; a rule's is built here. life: a name within which deaths are counted.
    """
    path, index = task
    folder = scratch / "attempts" / f"{index:05d}"
    folder.mkdir(parents=True, exist_ok=True)
    if _shard_done(scratch, index):
        return 0, 0
    waiting = families(read_documents(path), stage.dose, limit)
    files = 0
    with _token_bar(scratch, path, index, limit, shown=rewriter is not None) as bar:
        while group := list(islice(waiting, stage.chunk)):
            file = folder / shard_name(files)
            if not file.exists():
                rewriter = rewriter or stage.technique.build()
                with watched(file.with_suffix(f".{life}.strikes")) as strikes:
                    write_dropped(file, _attempts_of(group, rewriter, stage, strikes))
            files += 1
            bar.update(sum(tokens_of(family.parent.text) * len(family.seeds) for family in group))
    rows: list[tuple[int, int, int]] = []
    for row in _attempts(scratch, index):
        if row.drop.reason == PASSED:
            text = row.document.text
            rows.append((content_key(text), row.document.meta[LINEAGE]["seed"], tokens_of(text)))
    save_arrays(scratch / "passed" / f"{index:05d}.npz", rows=uint64(rows).reshape(-1, 3))
    return len(rows), files


def _attempts_of(group: Sequence[Family], rewriter: Rewriter, stage: Augment, strikes: Strikes) -> list[Dropped]:
    technique = stage.technique
    make = partial(
        attempt,
        rewriter=rewriter,
        gates=stage.gates or getattr(technique, "gates", None) or Gates(),
        technique=technique.name,
        model=technique.model,
        longest=stage.longest,
        drawn=getattr(technique, "drawn", nothing_drawn),
    )
    strikes.probe(group, lambda family: make([family]))
    for number, family in enumerate(group, 1):
        if strikes.out(number):
            family.refused = Drop(KILLED, STRIKES, STRIKES)
    return make(group)


def _token_bar(scratch: Path, path: Path, index: int, limit: int, *, shown: bool) -> Any:
    """Tokens a second and the time left of one shard, on a terminal."""
    planned = load_arrays(scratch / "survey" / f"{index:05d}.npz")["attempts"]
    tokens = int(planned[below(planned[:, 0], limit), 1].sum())
    options = {"unit": " tokens", "unit_scale": True, "dynamic_ncols": True, "leave": False}
    return tqdm(total=tokens, desc=path.stem, disable=None if shown else True, **options)


def _build_nothing() -> Rewriter:
    return _nothing


def _nothing(requests: Sequence[Any]) -> list[str | Drop]:
    return [Drop("not_asked") for _ in requests]


def _shard_done(scratch: Path, index: int) -> bool:
    return (scratch / "passed" / f"{index:05d}.npz").exists()


def _attempts(scratch: Path, index: int) -> Iterator[Dropped]:
    """The attempts of a shard in order."""
    for file in sorted((scratch / "attempts" / f"{index:05d}").glob("*.parquet")):
        yield from read_dropped(file)


def _settle(scratch: Path, shards: int, budget: int | None) -> None:
    """Decide over all shards which of the copies that passed are new and within the budget."""
    known = load_arrays(scratch / "plan.npz")["keys"]
    parts = [load_arrays(scratch / "passed" / f"{index:05d}.npz")["rows"] for index in range(shards)]
    rows = np.concatenate(parts) if parts else uint64([]).reshape(0, 3)
    decided = verdicts(known, rows[:, 0], rows[:, 1], rows[:, 2], budget)
    ends = np.cumsum([0, *map(len, parts)])
    save_arrays(scratch / "verdicts.npz", decided=decided, ends=ends)


def _write_shard(task: tuple[Path, int], *, scratch: Path, output: Path) -> Counts:
    """kept: every document, its copies behind it (and behind those of earlier stages); dropped: the rejected copies."""
    path, index = task
    done = done_counts(output, index)
    if done is not None:
        return done
    arrays = load_arrays(scratch / "verdicts.npz")
    decided = iter(arrays["decided"][arrays["ends"][index] : arrays["ends"][index + 1]].tolist())
    attempts = _attempts(scratch, index)
    for name in ("kept", "dropped"):
        (output / name).mkdir(parents=True, exist_ok=True)
    read = 0
    with (
        open_documents(output / "kept" / shard_name(index)) as kept,
        open_dropped(output / "dropped" / shard_name(index)) as dropped,
    ):
        following = next(attempts, None)
        parent: str | None = None
        for document in (*read_documents(path), None):
            lineage = {} if document is None else document.meta.get(LINEAGE, {})
            of_parent = lineage.get("parent", "") == parent
            while following is not None and not of_parent and following.document.meta[LINEAGE]["parent"] == parent:
                row = following.document
                reason = following.drop
                if reason.reason == PASSED:
                    reason = (Drop(PASSED), Drop("duplicate", partner=parent), Drop("beyond_budget"))[next(decided)]
                if reason.reason == PASSED:
                    kept.write(row)
                else:
                    dropped.write(Dropped(row, STEP, reason))
                following = next(attempts, None)
            if document is not None:
                kept.write(document)
                read += 1
                if not of_parent:
                    parent = document.id
        if following is not None:
            raise ValueError(f"{path}: {following.document.id} has no parent here; remove the dataset and build again")
    created = kept.count + dropped.count - read
    counts = Counts(read=read, created=created, kept=kept.count, dropped=dropped.count)
    mark_done(output, index, counts)
    return counts


def _documents_read(counts: Counts) -> int:
    return counts.read


def _first(result: tuple[int, int]) -> int:
    return result[0]
