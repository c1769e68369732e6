"""Verdicts on disk, the alarms that look at them, and the writing of kept and dropped shards.

A verdict is (row, partner row, similarity): this document goes because that one, which is kept, repeats it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data.dedup.rows import Rows, load_array, save_array
from data.document import Drop, Dropped
from data.engine import Engine
from data.stage import Counts, done_counts, mark_done, shard_name
from data.tables import open_documents, open_dropped, read_documents

VERSION = 1


class DedupAlarm(ValueError):
    """A stage removed more than its alarms allow: the message holds the numbers and the setting to change."""


@dataclass(frozen=True, kw_only=True)
class Alarms:
    """When removing stops the run instead of going on.

    max_source_loss: the largest share of a source's documents that may go, 0 to 1; 1 turns this alarm off.
    min_source_documents: smaller sources are not judged by their share.
    max_cluster: the largest number of documents that one kept document may remove; None turns this alarm off.
    """

    max_source_loss: float = 0.9
    min_source_documents: int = 100
    max_cluster: int | None = 1000

    def __post_init__(self) -> None:
        if not 0 < self.max_source_loss <= 1:
            raise ValueError(f"Alarms: max_source_loss must be in (0, 1], got {self.max_source_loss}")
        if self.max_cluster is not None and self.max_cluster < 1:
            raise ValueError(f"Alarms: max_cluster must be at least 1 or None, got {self.max_cluster}")

    def check_sources(self, step: str, sources: Mapping[str, tuple[int, int]]) -> None:
        """Raise DedupAlarm for sources that lose too much; sources: name -> (documents, removed)."""
        lost = [
            f"{name} loses {removed:,} of {total:,} documents ({removed / total:.1%})"
            for name, (total, removed) in sorted(sources.items())
            if total >= self.min_source_documents and removed / total > self.max_source_loss
        ]
        if lost:
            raise DedupAlarm(
                f"{step}: {'; '.join(lost)}; allowed is {self.max_source_loss:.1%}: look at examples, then raise "
                "Alarms.max_source_loss if this is right"
            )

    def check_clusters(self, step: str, clusters: Clusters) -> None:
        """Raise DedupAlarm for a kept document that removes too many others."""
        if self.max_cluster is not None and clusters.largest > self.max_cluster:
            raise DedupAlarm(
                f"{step}: {clusters.largest:,} documents would be removed for repeating {clusters.partner!r}; allowed "
                f"is {self.max_cluster:,}: look at them, then raise Alarms.max_cluster if this is right"
            )


@dataclass(frozen=True, slots=True)
class Clusters:
    """Cluster sizes: how many clusters have which size (kept document and removals), and the largest.

    largest: removals of the kept document that has most; partner: its id, the smallest of equals.
    """

    sizes: Mapping[int, int]
    largest: int = 0
    partner: str = ""

    @classmethod
    def of(cls, partners: np.ndarray, rows: Rows) -> Clusters:
        """From the partner rows of some verdicts, all removals of a kept document among them."""
        kept, counts = np.unique(partners, return_counts=True)
        if not len(kept):
            return cls({})
        most = int(counts.max())
        sizes, times = np.unique(counts + 1, return_counts=True)
        return cls(dict(zip(sizes.tolist(), times.tolist())), most, min(rows.ids(kept[counts == most])))

    def __add__(self, other: Clusters) -> Clusters:
        sizes = {size: self.sizes.get(size, 0) + other.sizes.get(size, 0) for size in {*self.sizes, *other.sizes}}
        first = min(self, other, key=lambda part: (-part.largest, part.partner))
        return Clusters(sizes, first.largest, first.partner)

    def report(self) -> dict[str, int]:
        """A size histogram: {"2": n, "3": n, "4-7": n, ...}."""
        bins: dict[str, int] = {}
        for size, count in sorted(self.sizes.items()):
            low = 1 << (size.bit_length() - 1)
            label = str(size) if size < 4 else f"{low}-{2 * low - 1}"
            bins[label] = bins.get(label, 0) + count
        return bins


def save_verdicts(folder: Path, rows: np.ndarray, partners: np.ndarray, values: np.ndarray) -> None:
    """Write verdicts sorted by row: rows and partners int64 [n] (global), values float64 [n]."""
    order = np.argsort(rows, kind="stable")
    save_array(folder / "rows.npy", np.asarray(rows, np.int64)[order])
    save_array(folder / "partners.npy", np.asarray(partners, np.int64)[order])
    save_array(folder / "values.npy", np.asarray(values, np.float64)[order])


def load_verdicts(folders: Sequence[str], start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The verdicts on rows start <= row < stop, sorted by row: rows, partners, values."""
    parts = []
    for folder in map(Path, folders):
        rows = load_array(folder / "rows.npy")
        low, high = np.searchsorted(rows, [start, stop])
        if high > low:
            parts.append(
                [np.asarray(load_array(folder / f"{n}.npy")[low:high]) for n in ("rows", "partners", "values")]
            )
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    rows, partners, values = (np.concatenate(column) for column in zip(*parts))
    order = np.argsort(rows, kind="stable")
    return rows[order], partners[order], values[order]


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What the writers of kept and dropped shards need.

    inputs: the shards that belong to the first rows of `rows`; more row tables than inputs: partners from an index.
    unusable: the reason of documents that the scan listed in `unusable.npy` (no text to compare).
    """

    inputs: tuple[str, ...]
    output: str
    rows: Rows
    verdicts: tuple[str, ...]
    step: str
    reason: str
    unusable: str
    threshold: float | None

    def run(self, engine: Engine) -> Counts:
        """Write every shard; the books."""
        for name in ("kept", "dropped"):
            (Path(self.output) / name).mkdir(parents=True, exist_ok=True)
        numbers = list(range(len(self.inputs)))
        return sum(engine.map_shards(partial(write_shard, self), numbers, label=f"{self.step}: write"), Counts())

    def sources(self) -> dict[str, tuple[int, int]]:
        """Documents and removals of each source: name -> (documents, removed)."""
        totals: dict[str, tuple[int, int]] = {}
        for number in range(len(self.inputs)):
            folder, start = self.rows.folders[number], self.rows.starts[number]
            names = json.loads((folder / "sources.json").read_text(encoding="utf-8"))
            source = load_array(folder / "rows.npy")["source"]
            removed = load_verdicts(self.verdicts, start, self.rows.starts[number + 1])[0] - start
            gone = np.bincount(source[removed], minlength=len(names))
            for name, count, lost in zip(names, np.bincount(source, minlength=len(names)), gone):
                before = totals.get(name, (0, 0))
                totals[name] = before[0] + int(count), before[1] + int(lost)
        return dict(sorted(totals.items()))


def write_shard(removal: Removal, number: int) -> Counts:
    """Write kept/ and dropped/ of one shard, unless an interrupted run left them whole; the books."""
    output, name = Path(removal.output), shard_name(number)
    done = done_counts(output, number)
    if done is not None:
        return done
    drops = _drops(removal, number)
    with ExitStack() as stack:
        kept = stack.enter_context(open_documents(output / "kept" / name))
        dropped = stack.enter_context(open_dropped(output / "dropped" / name))
        read = 0
        for place, document in enumerate(read_documents(Path(removal.inputs[number]))):
            read += 1
            if place in drops:
                dropped.write(Dropped(document, removal.step, drops[place]))
            else:
                kept.write(document)
    counts = Counts(read=read, kept=kept.count, dropped=dropped.count)
    mark_done(output, number, counts)
    return counts


def _drops(removal: Removal, number: int) -> dict[int, Drop]:
    start, stop = removal.rows.starts[number], removal.rows.starts[number + 1]
    rows, partners, values = load_verdicts(removal.verdicts, start, stop)
    names = removal.rows.ids(partners)
    drops: dict[int, Drop] = {
        int(row): Drop(removal.reason, float(value), removal.threshold, name)
        for row, value, name in zip(rows - start, values, names)
    }
    for row in load_array(removal.rows.folders[number] / "unusable.npy").tolist():
        drops[row] = Drop(removal.unusable)
    return drops
