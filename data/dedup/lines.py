"""Lines and paragraphs that many documents repeat (menus, notices, licence headers) are taken out.

A line is compared after white space at its ends is removed and runs of it are one space. It counts once a document.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import xxhash

from data.dedup.exact import check_ids
from data.dedup.rows import Rows, RowWriter, SurvivorPolicy, load_array, mark_whole, save_array, whole_count
from data.dedup.runs import Range, groups, plan_ranges, split_groups, write_run
from data.dedup.verdicts import Alarms
from data.document import Document, Drop, Dropped
from data.engine import Engine
from data.stage import NOT_IN_KEY, Counts, shard_name
from data.tables import open_documents, open_dropped, read_documents, write_json

VERSION = 1

REPORTED = 200  # repeated lines that the report shows, most frequent first
_SEPARATORS = {"line": re.compile(r"(\n)"), "paragraph": re.compile(r"(\n\s*\n)")}


@dataclass(frozen=True, kw_only=True)
class LineDedup:
    """The stage. Removes repeated lines; drops: `repeated_lines` when fewer than `min_chars_left` characters remain.

    unit: "line", or "paragraph" (apart by an empty line).
    min_documents: documents that must hold a line before it counts as repeated.
    min_chars: shorter lines are never removed: they are too common by chance (")", "return x").
    keep_first: the line stays in the one document that comes first by `policy`; False removes it everywhere.
    allow: lines that are never removed.
    meta["repeated_lines"] says how many a kept document lost.
    """

    name: ClassVar[str] = "line_dedup"
    version: ClassVar[int] = VERSION
    code_modules: ClassVar[tuple[str, ...]] = (
        "data.dedup.lines",
        "data.dedup.exact",
        "data.dedup.rows",
        "data.dedup.runs",
    )
    libraries: ClassVar[tuple[str, ...]] = ("pyarrow", "xxhash")

    unit: Literal["line", "paragraph"] = "line"
    min_documents: int = 10
    min_chars: int = 30
    keep_first: bool = True
    allow: tuple[str, ...] = ()
    min_chars_left: int = 1
    policy: SurvivorPolicy = field(default_factory=SurvivorPolicy)
    alarms: Alarms = field(default_factory=Alarms, metadata=NOT_IN_KEY)
    memory_bytes: int = field(default=1 << 30, metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        if self.unit not in _SEPARATORS:
            raise ValueError(f"LineDedup: unit must be line or paragraph, got {self.unit!r}")
        if self.min_documents < 2:
            raise ValueError(f"LineDedup: min_documents must be at least 2, got {self.min_documents}")

    def run(self, inputs: Sequence[Path], output: Path, engine: Engine) -> Counts:
        """Remove repeated lines. Raises ValueError for ids that repeat, DedupAlarm for too many documents emptied."""
        scratch = output / "scratch"
        for name in ("kept", "dropped"):
            (output / name).mkdir(parents=True, exist_ok=True)
        shards = [(str(path), str(scratch / "scan" / f"{number:05d}")) for number, path in enumerate(inputs)]
        rows = Rows.of(
            [Path(folder) for _, folder in shards],
            engine.map_shards(partial(_scan, self), shards, label=f"{self.name}: hash"),
        )
        check_ids(rows, rows.folders, self.memory_bytes, engine, self.name)
        ranges = plan_ranges([folder / "lines" for folder in rows.folders], rows.starts[:-1], self.memory_bytes)
        parts = [(str(scratch / "repeated" / f"{number:05d}"), piece) for number, piece in enumerate(ranges)]
        engine.map_shards(partial(_count, self, rows), parts, label=f"{self.name}: count")
        for name in ("hashes", "counts", "owners"):
            arrays = [load_array(Path(folder) / f"{name}.npy") for folder, _ in parts]
            save_array(scratch / f"{name}.npy", np.concatenate(arrays) if arrays else np.empty(0, np.int64))
        job = partial(_write, self, rows, tuple(map(str, inputs)), str(output))
        results = engine.map_shards(job, list(range(len(inputs))), label=f"{self.name}: write")
        self._report(output, [(sources, texts) for _, sources, texts in results])
        shutil.rmtree(scratch, ignore_errors=True)
        return sum((counts for counts, _, _ in results), Counts())

    def lines(self, text: str) -> Iterator[tuple[str, int]]:
        """(piece as it stands with the separator behind it, hash or 0 for one that is never removed)."""
        parts = _SEPARATORS[self.unit].split(text)
        allowed = {" ".join(line.split()) for line in self.allow}
        for piece, separator in zip(parts[::2], [*parts[1::2], ""]):
            form = " ".join(piece.split())
            removable = len(form) >= max(self.min_chars, 1) and form not in allowed
            yield piece + separator, (xxhash.xxh3_64_intdigest(form.encode()) | 1) if removable else 0

    def _report(self, output: Path, results: Sequence[tuple[dict[str, tuple[int, int]], dict[int, str]]]) -> None:
        totals: dict[str, tuple[int, int]] = {}
        texts: dict[int, str] = {}
        for sources, found in results:
            texts = {**found, **texts}
            for name, (count, gone) in sources.items():
                before = totals.get(name, (0, 0))
                totals[name] = before[0] + count, before[1] + gone
        self.alarms.check_sources(self.name, totals)
        hashes, counts = (load_array(output / "scratch" / f"{name}.npy") for name in ("hashes", "counts"))
        top = np.lexsort((hashes, -counts))[:REPORTED]
        lines = [{"documents": int(counts[i]), "text": texts[int(hashes[i])]} for i in top if int(hashes[i]) in texts]
        write_json(
            output / "dedup.json",
            {"sources": dict(sorted(totals.items())), "repeated": len(hashes), "most_frequent": lines},
        )


def _scan(stage: LineDedup, task: tuple[str, str]) -> int:
    path, folder = task[0], Path(task[1])
    done = whole_count(folder)
    if done is not None:
        return done
    writer = RowWriter(stage.policy)
    hashes, places = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    count = 0
    for document in read_documents(Path(path)):
        writer.add(document)
        found = np.array(sorted({value for _, value in stage.lines(document.text)} - {0}), np.uint64)
        hashes.append(found)
        places.append(np.full(len(found), count))
        count += 1
    write_run(folder / "ids", writer.id_hashes(), np.arange(count))
    write_run(folder / "lines", np.concatenate(hashes), np.concatenate(places))
    return mark_whole(folder, writer.save(folder))


def _count(stage: LineDedup, rows: Rows, task: tuple[str, Range]) -> int:
    """Repeated lines of one range: hashes (sorted), counts of documents, owners (the row that keeps the line)."""
    folder, piece = task
    keys, places = groups(piece)
    found = [group for group in split_groups(keys, places) if len(group) >= stage.min_documents]
    unique, counts = np.unique(keys, return_counts=True)
    repeated = counts >= stage.min_documents
    owners = [int(group[rows.order(group)[0]]) if stage.keep_first else -1 for group in found]
    save_array(Path(folder) / "hashes.npy", unique[repeated])
    save_array(Path(folder) / "counts.npy", counts[repeated])
    save_array(Path(folder) / "owners.npy", np.array(owners, np.int64))
    return len(owners)


def _write(
    stage: LineDedup, rows: Rows, inputs: tuple[str, ...], output: str, number: int
) -> tuple[Counts, dict[str, tuple[int, int]], dict[int, str]]:
    """Write one shard: books, documents and drops of each source, and the texts of the most repeated lines."""
    scratch = Path(output) / "scratch"
    hashes, counts, owners = (np.asarray(load_array(scratch / f"{n}.npy")) for n in ("hashes", "counts", "owners"))
    top = set(hashes[np.lexsort((hashes, -counts))[:REPORTED]].tolist())
    tally: dict[str, list[int]] = {}
    texts: dict[int, str] = {}
    read = 0
    with (
        open_documents(Path(output) / "kept" / shard_name(number)) as kept,
        open_dropped(Path(output) / "dropped" / shard_name(number)) as dropped,
    ):
        for place, document in enumerate(read_documents(Path(inputs[number]))):
            read += 1
            result = _strip(stage, document, rows.starts[number] + place, hashes, owners, top - texts.keys(), texts)
            count = tally.setdefault(document.source, [0, 0])
            count[0] += 1
            if isinstance(result, Drop):
                count[1] += 1
                dropped.write(Dropped(document, stage.name, result))
            else:
                kept.write(result)
    counts_now = Counts(read=read, kept=kept.count, dropped=dropped.count)
    return counts_now, {name: (count[0], count[1]) for name, count in tally.items()}, texts


def _strip(
    stage: LineDedup,
    document: Document,
    row: int,
    hashes: np.ndarray,
    owners: np.ndarray,
    wanted: set[int],
    texts: dict[int, str],
) -> Document | Drop:
    """The document without repeated lines; `wanted` hashes are noted in `texts` with their line."""
    pieces = list(stage.lines(document.text))
    values = np.array([value for _, value in pieces], np.uint64)
    if not len(hashes):
        return document
    index = np.minimum(np.searchsorted(hashes, values), len(hashes) - 1)
    gone = (hashes[index] == values) & (owners[index] != row)
    for place in np.flatnonzero(hashes[index] == values):
        value = int(values[place])
        if value in wanted:
            texts[value] = min(texts.get(value, pieces[place][0].strip()), pieces[place][0].strip())
    if not gone.any():
        return document
    text = "".join(piece for (piece, _), out in zip(pieces, gone.tolist()) if not out)
    if gone[-1]:
        text = text.rstrip("\n")
    if len(text.strip()) < stage.min_chars_left:
        return Drop("repeated_lines", len(text.strip()), stage.min_chars_left)
    return document.with_text(text).with_meta(repeated_lines=int(gone.sum()))
