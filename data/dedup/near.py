"""Near dedup: documents whose shingle sets overlap by at least a threshold are reduced to one, with proof.

    scan       shards -> shingle sets, signatures, band keys (sorted runs)        one pass over the text
    group      runs of each band -> pairs that connect equal keys
    verify     components of those pairs -> verdicts, by true Jaccard similarity in policy order
    write      kept and dropped shards, report, index

The result does not depend on the order of documents, on shards or on workers. Memory: `memory_bytes` for each worker,
and one shard's hashes (about the size of its text).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data.dedup import index as index_files
from data.dedup.bands import band_keys, choose_bands
from data.dedup.components import label_components, plan_tasks, star_edges
from data.dedup.exact import check_ids
from data.dedup.minhash import MinHasher
from data.dedup.rounds import label_by_rounds
from data.dedup.rows import Rows, RowWriter, SurvivorPolicy, load_array, mark_whole, save_array, whole_count
from data.dedup.runs import Range, plan_ranges, sorted_pairs, write_run
from data.dedup.shingles import BATCH_CHARS, Shingles, hash_shingles, unique_sorted
from data.dedup.verdicts import Alarms, Clusters, Removal, load_verdicts, save_verdicts
from data.dedup.verify import ShingleFiles, verify
from data.engine import Engine
from data.stage import NOT_IN_KEY, Counts
from data.tables import read_documents, write_json

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class NearDedup:
    """The stage. Drops: `near_duplicate` (value = Jaccard similarity, partner = a kept document), `no_words`.

    threshold: the Jaccard similarity of shingle sets from which two documents count as the same.
    false_negative_weight: how much a missed pair counts against a needless comparison when bands are chosen. High,
        because every pair is verified: a false candidate costs time, never a document.
    index: the folder of an index that an earlier run saved (its stage folder's index/): what repeats a document of it
        goes, with a partner id of that dataset. Equal to dedup of both together with the old documents first.
    save_index: write index/ beside kept/: the survivors' shingle sets and signatures (and those of `index`).
    memory_bytes: working memory of one worker.
    label_in_rounds_above: documents from which components are found by the engine in rounds of file shuffles, not by
        one process with 8 bytes of disk a document; the same verdicts either way.
    """

    name: ClassVar[str] = "near_dedup"
    version: ClassVar[int] = VERSION
    code_modules: ClassVar[tuple[str, ...]] = tuple(
        f"data.dedup.{module}"
        for module in (
            *("near", "exact", "rows", "runs", "verdicts", "shingles", "minhash"),
            *("bands", "components", "rounds", "verify", "index"),
        )
    )
    libraries: ClassVar[tuple[str, ...]] = ("pyarrow", "xxhash", "numpy", "scipy")

    threshold: float = 0.8
    shingles: Shingles = field(default_factory=Shingles)
    minhash: MinHasher = field(default_factory=MinHasher)
    false_negative_weight: float = 0.9
    policy: SurvivorPolicy = field(default_factory=SurvivorPolicy)
    alarms: Alarms = field(default_factory=Alarms, metadata=NOT_IN_KEY)
    index: str | None = None
    save_index: bool = False
    memory_bytes: int = field(default=1 << 30, metadata=NOT_IN_KEY)
    label_in_rounds_above: int = field(default=1 << 30, metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        self.bands()  # raises for what cannot be banded

    def bands(self) -> tuple[int, int]:
        """(bands, rows), chosen for the threshold."""
        return choose_bands(self.threshold, self.minhash.num_perm, self.false_negative_weight)

    def inputs_key(self) -> Any:
        """What the index holds, for the stage key."""
        return None if self.index is None else index_files.read_manifest(Path(self.index))

    def run(self, inputs: Sequence[Path], output: Path, engine: Engine) -> Counts:
        """Remove near-duplicates. Raises ValueError for repeated ids or another index, DedupAlarm for too much loss."""
        scratch = output / "scratch"
        rows, runs = self._scan(inputs, scratch, engine)
        check_ids(rows, runs, self.memory_bytes, engine, self.name)
        tasks = self._components(rows, runs, scratch, engine)
        files = ShingleFiles(rows, tuple(str(run / "bands.npy") for run in runs))
        job = partial(_verify, self, files, rows.starts[len(inputs)])
        parts = [(str(self._ranged(scratch) / "verdicts" / f"{n:05d}"), piece) for n, piece in enumerate(tasks)]
        found = engine.map_shards(job, parts, label=f"{self.name}: verify", twice=True)
        removal = Removal(
            inputs=tuple(map(str, inputs)),
            output=str(output),
            rows=rows,
            verdicts=tuple(folder for folder, _ in parts),
            step=self.name,
            reason="near_duplicate",
            unusable="no_words",
            threshold=self.threshold,
        )
        clusters = sum(found, Clusters({}))
        self.alarms.check_clusters(self.name, clusters)
        sources = removal.sources()
        self.alarms.check_sources(self.name, sources)
        counts = removal.run(engine)
        if self.save_index:
            self._save_index(removal, output / "index", engine)
        bands, band_rows = self.bands()
        report = {"bands": bands, "rows": band_rows, "sources": sources, "clusters": clusters.report()}
        write_json(output / "dedup.json", report)
        shutil.rmtree(scratch, ignore_errors=True)
        return counts

    def _scan(self, inputs: Sequence[Path], scratch: Path, engine: Engine) -> tuple[Rows, list[Path]]:
        """Row tables of inputs and, behind them, of the index; and the folders of their sorted runs."""
        folders = [scratch / "scan" / f"{number:05d}" for number in range(len(inputs))]
        runs = list(folders)
        counts = engine.map_shards(
            partial(_scan, self),
            [(str(path), str(folder)) for path, folder in zip(inputs, folders)],
            label=f"{self.name}: scan",
            documents=int,
            twice=True,
        )
        if self.index is not None:
            parts = index_files.open_index(Path(self.index), self)
            old_runs = [scratch / "old" / f"{number:05d}" for number in range(len(parts))]
            pairs = [(str(part), str(run)) for part, run in zip(parts, old_runs)]
            counts += engine.map_shards(partial(_scan_index, self), pairs, label=f"{self.name}: index")
            folders, runs = folders + parts, runs + old_runs
        return Rows.of(folders, counts), runs

    def _components(self, rows: Rows, runs: Sequence[Path], scratch: Path, engine: Engine) -> list[Range]:
        """Ranges of colliding documents, whole components in each."""
        ranges = plan_ranges([run / "runs" for run in runs], rows.starts[:-1], self.memory_bytes, bands=self.bands()[0])
        work = self._ranged(scratch)
        files = [work / "edges" / f"{number:05d}.npy" for number in range(len(ranges))]
        engine.map_shards(_edges, list(zip(ranges, map(str, files))), label=f"{self.name}: group", twice=True)
        path = work / "labels.npy"
        if len(rows) > self.label_in_rounds_above:
            labels = label_by_rounds(files, len(rows), path, self.memory_bytes, engine)
        else:
            labels = label_components(files, len(rows), path, self.memory_bytes)
        return plan_tasks(labels, work / "components", self.memory_bytes)

    def _ranged(self, scratch: Path) -> Path:
        """What is cut into ranges: a run that goes on with another `memory_bytes` cuts anew."""
        return scratch / f"memory-{self.memory_bytes}"

    def _save_index(self, removal: Removal, folder: Path, engine: Engine) -> None:
        """Write the index of what survived, atomically; parts of the old index first."""
        partial_folder = folder.with_name("index.partial")
        shutil.rmtree(partial_folder, ignore_errors=True)
        names = [f"{number:05d}" for number in range(len(removal.rows.folders))]
        old = len(removal.rows.folders) - len(removal.inputs)
        for name, part in zip(names, removal.rows.folders[len(removal.inputs) :]):
            shutil.copytree(part, partial_folder / name)
        tasks = [(number, str(partial_folder / names[old + number])) for number in range(len(removal.inputs))]
        engine.map_shards(partial(_save_part, self, removal), tasks, label=f"{self.name}: index")
        index_files.seal(partial_folder, names, self)
        shutil.rmtree(folder, ignore_errors=True)
        partial_folder.rename(folder)


def _scan(stage: NearDedup, task: tuple[str, str]) -> int:
    """Read one shard: its row table, shingle sets, signatures and band keys; how many documents."""
    path, folder = task[0], Path(task[1])
    done = whole_count(folder)
    if done is not None:
        return done
    writer = RowWriter(stage.policy)
    sets, sizes = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    signatures = [np.empty((0, stage.minhash.num_perm), stage.minhash.dtype)]

    def flush(texts: list[str]) -> None:
        if texts:
            found = unique_sorted(hash_shingles(texts, stage.shingles))
            sets.append(found.values)
            sizes.append(np.diff(found.starts))
            signatures.append(stage.minhash.signatures(found))

    texts: list[str] = []
    waiting = 0
    for document in read_documents(Path(path)):
        if texts and waiting + len(document.text) > BATCH_CHARS:
            flush(texts)
            texts, waiting = [], 0
        writer.add(document)
        texts.append(document.text)
        waiting += len(document.text)
    flush(texts)
    each = np.concatenate(sizes)
    save_array(folder / "hashes.npy", np.concatenate(sets))
    save_array(folder / "offsets.npy", np.concatenate(([0], np.cumsum(each))))
    save_array(folder / "unusable.npy", np.flatnonzero(each == 0))
    _write_bands(stage, folder, np.concatenate(signatures), np.flatnonzero(each))
    write_run(folder / "ids", writer.id_hashes(), np.arange(len(each)))
    if stage.save_index:
        save_array(folder / "signatures.npy", np.concatenate(signatures))
    return mark_whole(folder, writer.save(folder))


def _scan_index(stage: NearDedup, task: tuple[str, str]) -> int:
    """Band keys of one part of an index, into scratch; how many documents."""
    part, folder = Path(task[0]), Path(task[1])
    done = whole_count(folder)
    if done is not None:
        return done
    signatures, id_hashes = index_files.load_part(part)
    _write_bands(stage, folder, signatures, np.arange(len(signatures)))
    write_run(folder / "ids", id_hashes, np.arange(len(signatures)))
    return mark_whole(folder, len(signatures))


def _write_bands(stage: NearDedup, folder: Path, signatures: np.ndarray, usable: np.ndarray) -> None:
    keys = band_keys(signatures, *stage.bands())
    save_array(folder / "bands.npy", keys)
    write_run(folder / "runs", keys[usable], usable)


def _edges(task: tuple[Range, str]) -> int:
    if not Path(task[1]).exists():
        save_array(Path(task[1]), star_edges(task[0]))
    return len(load_array(Path(task[1])))


def _verify(stage: NearDedup, files: ShingleFiles, first_old: int, task: tuple[str, Range]) -> Clusters:
    """Verdicts of one task, unless an interrupted run left them whole; their clusters."""
    folder, piece = Path(task[0]), task[1]
    if whole_count(folder) is None:
        found = verify(np.unique(sorted_pairs(piece)[1]), files, stage.threshold, first_old)
        save_verdicts(folder, np.array(found.rows), np.array(found.partners), np.array(found.values))
        mark_whole(folder, len(found.rows))
    return Clusters.of(np.asarray(load_array(folder / "partners.npy")), files.rows)


def _save_part(stage: NearDedup, removal: Removal, task: tuple[int, str]) -> int:
    """The index part of one shard: its survivors; how many."""
    number, folder = task
    start, stop = removal.rows.starts[number], removal.rows.starts[number + 1]
    gone = load_verdicts(removal.verdicts, start, stop)[0] - start
    return index_files.save_part(removal.rows.folders[number], Path(folder), gone)
