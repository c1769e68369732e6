"""Exact dedup: of documents with the same normalised text, one is kept.

The text is compared by a 128-bit hash (xxh3) of its normal form. Hashes are grouped in sorted runs on disk, so memory
is bounded by a setting and the result does not depend on the order of documents or the number of workers.
"""

from __future__ import annotations

import shutil
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import xxhash

from data.dedup.rows import Rows, RowWriter, SurvivorPolicy, load_array, mark_whole, save_array, whole_count
from data.dedup.runs import Range, groups, plan_ranges, split_groups, write_run
from data.dedup.verdicts import Alarms, Clusters, Removal, save_verdicts
from data.engine import Engine
from data.stage import NOT_IN_KEY, Counts
from data.tables import read_documents, write_json

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ExactDedup:
    """The stage. Drops: `exact_duplicate` (value 1.0, partner = the kept document), `empty_text`.

    normalise: "none" compares the text as it is; "whitespace" (default) after Unicode NFC with runs of white space as
        one space and none at the ends; "case" folds case as well. What is written is always the text as it came.
    memory_bytes: working memory of one worker for grouping.
    """

    name: ClassVar[str] = "exact_dedup"
    version: ClassVar[int] = VERSION
    code_modules: ClassVar[tuple[str, ...]] = (
        "data.dedup.exact",
        "data.dedup.rows",
        "data.dedup.runs",
        "data.dedup.verdicts",
    )
    libraries: ClassVar[tuple[str, ...]] = ("pyarrow", "xxhash")

    normalise: Literal["none", "whitespace", "case"] = "whitespace"
    policy: SurvivorPolicy = field(default_factory=SurvivorPolicy)
    alarms: Alarms = field(default_factory=Alarms, metadata=NOT_IN_KEY)
    memory_bytes: int = field(default=1 << 30, metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        if self.normalise not in ("none", "whitespace", "case"):
            raise ValueError(f"ExactDedup: normalise must be none, whitespace or case, got {self.normalise!r}")

    def run(self, inputs: Sequence[Path], output: Path, engine: Engine) -> Counts:
        """Remove exact duplicates. Raises ValueError for ids that repeat, DedupAlarm for too much removed."""
        work = output / "scratch"
        shards = [(str(path), str(work / "scan" / f"{number:05d}")) for number, path in enumerate(inputs)]
        counts = engine.map_shards(partial(_scan, self), shards, label=f"{self.name}: hash", documents=int)
        rows = Rows.of([Path(folder) for _, folder in shards], counts)
        check_ids(rows, rows.folders, self.memory_bytes, engine, self.name)
        runs = [Path(folder) / "texts" for _, folder in shards]
        ranges = plan_ranges(runs, rows.starts[:-1], self.memory_bytes)
        tasks = [(str(work / "verdicts" / f"{n:05d}"), piece) for n, piece in enumerate(ranges)]
        found = engine.map_shards(partial(_decide, self, rows), tasks, label=f"{self.name}: group")
        removal = Removal(
            inputs=tuple(map(str, inputs)),
            output=str(output),
            rows=rows,
            verdicts=tuple(folder for folder, _ in tasks),
            step=self.name,
            reason="exact_duplicate",
            unusable="empty_text",
            threshold=1.0,
        )
        clusters = sum(found, Clusters({}))
        self.alarms.check_clusters(self.name, clusters)
        sources = removal.sources()
        self.alarms.check_sources(self.name, sources)
        total = removal.run(engine)
        write_json(output / "dedup.json", {"sources": sources, "clusters": clusters.report()})
        shutil.rmtree(work, ignore_errors=True)
        return total

    def normal_form(self, text: str) -> str:
        """The text as it is compared."""
        if self.normalise == "none":
            return text
        if not text.isascii():
            text = unicodedata.normalize("NFC", text)
        text = " ".join(text.split())
        return text.casefold() if self.normalise == "case" else text


def _scan(stage: ExactDedup, shard: tuple[str, str]) -> int:
    path, folder = shard[0], Path(shard[1])
    done = whole_count(folder)
    if done is not None:
        return done
    writer = RowWriter(stage.policy)
    digests, empty = bytearray(), []
    for place, document in enumerate(read_documents(Path(path))):
        writer.add(document)
        text = stage.normal_form(document.text)
        if not text.strip():
            empty.append(place)
        digests += xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass"))
    count = writer.save(folder)
    pairs = np.frombuffer(bytes(digests), "<u8").reshape(-1, 2)
    usable = np.setdiff1d(np.arange(count), empty)
    write_run(folder / "ids", writer.id_hashes(), np.arange(count))
    write_run(folder / "texts", pairs[usable, 0], usable)
    save_array(folder / "second.npy", np.ascontiguousarray(pairs[:, 1]))
    save_array(folder / "unusable.npy", np.array(empty, np.int64))
    return mark_whole(folder, count)


def _decide(stage: ExactDedup, rows: Rows, task: tuple[str, Range]) -> Clusters:
    """Verdicts of one range of hashes; their clusters."""
    folder, piece = task
    removed: list[int] = []
    partners: list[int] = []
    for group in split_groups(*groups(piece)):
        second = np.empty(len(group), np.uint64)
        for shard, where, local in rows.shards_of(group):
            second[where] = load_array(rows.folders[shard] / "second.npy")[local]
        for value in np.unique(second):
            same = group[second == value]
            if len(same) > 1:
                ordered = same[rows.order(same)]
                removed += ordered[1:].tolist()
                partners += [int(ordered[0])] * (len(same) - 1)
    save_verdicts(Path(folder), np.array(removed, np.int64), np.array(partners, np.int64), np.ones(len(removed)))
    return Clusters.of(np.array(partners, np.int64), rows)


def check_ids(rows: Rows, runs: Sequence[Path], memory_bytes: int, engine: Engine, step: str) -> None:
    """Raise ValueError when a document id occurs twice: evidence that names an id must mean one document.

    runs: for each folder of `rows` the folder that holds ids/, the run of hashed ids.
    """
    ranges = plan_ranges([run / "ids" for run in runs], rows.starts[:-1], memory_bytes)
    for found in engine.map_shards(partial(_repeated_id, rows), ranges, label=f"{step}: ids"):
        if found is not None:
            raise ValueError(
                f"{step}: document id {found!r} occurs more than once; ids must be unique: give the "
                "sources different names or let the reader put the place of a record into its id"
            )


def _repeated_id(rows: Rows, piece: Range) -> str | None:
    for group in split_groups(*groups(piece)):
        count = Counter(rows.ids(group))
        repeated = sorted(name for name, times in count.items() if times > 1)
        if repeated:
            return repeated[0]
    return None
