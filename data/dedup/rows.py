"""The row table: what a dedup stage remembers of each document, and which of two documents survives.

A stage numbers documents by their place in its inputs (row 0 is the first document of the first shard). The row table
holds what the survivor policy needs, so that no later step reads a text again. It is a folder of NumPy files, one set
per shard, opened memory-mapped. Row numbers never decide anything: the policy ends at the document id.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import xxhash

from data.document import Document
from data.tables import MACHINE, write_json

VERSION = 1

ROW = np.dtype([("priority", "<i4"), ("source", "<i4"), ("score", "<f8"), ("length", "<i8"), ("id_end", "<i8")])
_OPEN_ARRAYS = 256  # memory-mapped files held open at once: well under the usual limit of 1,024 descriptors


@dataclass(frozen=True, kw_only=True)
class SurvivorPolicy:
    """Which of several equal documents is kept: the same on every run and machine.

    sources: source names, best first; sources not named come after them, equal to each other.
    score: the key in `document.scores` of a quality score, higher is better; documents without it come last.
    longest: then the longest text; at the end always the smallest id.
    """

    sources: tuple[str, ...] = ()
    score: str | None = None
    longest: bool = True

    def priority(self, source: str) -> int:
        """The place of a source: smaller survives."""
        return self.sources.index(source) if source in self.sources else len(self.sources)

    def value(self, document: Document) -> float:
        """The quality of a document: larger survives."""
        if self.score is None:
            return 0.0
        score = document.scores.get(self.score)
        if isinstance(score, bool) or not isinstance(score, int | float) or math.isnan(score):
            return -math.inf
        return float(score)


class RowWriter:
    """Collects the rows of one shard."""

    def __init__(self, policy: SurvivorPolicy) -> None:
        self.policy = policy
        self.sources: dict[str, int] = {}
        self._priorities: list[int] = []
        self._rows: list[tuple[int, int, float, int, int]] = []
        self._ids = bytearray()

    def add(self, document: Document) -> None:
        """Remember one document."""
        source = self.sources.get(document.source)
        if source is None:
            source = self.sources[document.source] = len(self.sources)
            self._priorities.append(self.policy.priority(document.source))
        self._ids += document.id.encode("utf-8")
        length = len(document.text) if self.policy.longest else 0
        self._rows.append((self._priorities[source], source, self.policy.value(document), length, len(self._ids)))

    def save(self, folder: Path) -> int:
        """Write the table of this shard into `folder`; the number of rows. The scan calls `mark_whole` after it."""
        save_array(folder / "rows.npy", np.array(self._rows, ROW))
        save_array(folder / "ids.npy", np.frombuffer(bytes(self._ids), np.uint8))
        write_json(folder / "sources.json", list(self.sources))
        return len(self._rows)

    def id_hashes(self) -> np.ndarray:
        """A 64-bit hash of each id (uint64 [n]), to find ids that repeat."""
        ends = [row[4] for row in self._rows]
        starts = [0, *ends[:-1]]
        view = memoryview(bytes(self._ids))
        return np.array([xxhash.xxh3_64_intdigest(view[start:end]) for start, end in zip(starts, ends)], np.uint64)


@dataclass(frozen=True)
class Rows:
    """The row tables of all shards of a stage.

    folders: one per shard; starts: the first global row of each shard, and the total at the end (len + 1 numbers).
    """

    folders: tuple[Path, ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, folders: Sequence[Path], counts: Sequence[int]) -> Rows:
        """Number the rows of shards that hold `counts` documents."""
        starts = [0]
        for count in counts:
            starts.append(starts[-1] + count)
        return cls(tuple(folders), tuple(starts))

    def __len__(self) -> int:
        return self.starts[-1]

    def shards_of(self, rows: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Split global rows by shard: (shard, positions in `rows`, rows within the shard), without empty shards."""
        shard = np.searchsorted(np.asarray(self.starts[1:]), rows, side="right")
        places = np.argsort(shard, kind="stable")
        cuts = np.searchsorted(shard[places], np.arange(len(self.folders) + 1))
        parts = []
        for number in np.unique(shard):
            where = places[cuts[number] : cuts[number + 1]]
            parts.append((int(number), where, rows[where] - self.starts[number]))
        return parts

    def facts(self, rows: np.ndarray) -> np.ndarray:
        """The policy facts of some rows, as a structured array."""
        out = np.empty(len(rows), ROW)
        for shard, where, local in self.shards_of(rows):
            out[where] = load_array(self.folders[shard] / "rows.npy")[local]
        return out

    def ids(self, rows: np.ndarray) -> list[str]:
        """The document ids of some rows."""
        out = [""] * len(rows)
        for shard, where, local in self.shards_of(rows):
            ends = load_array(self.folders[shard] / "rows.npy")["id_end"]
            text = load_array(self.folders[shard] / "ids.npy")
            for place, row in zip(where.tolist(), local.tolist()):
                start = ends[row - 1] if row else 0
                out[place] = text[start : ends[row]].tobytes().decode("utf-8")
        return out

    def order(self, rows: np.ndarray) -> np.ndarray:
        """Positions that sort `rows` by the survivor policy: who comes first survives."""
        facts, ids = self.facts(rows), self.ids(rows)
        rank = np.empty(len(rows), np.int64)
        rank[sorted(range(len(rows)), key=ids.__getitem__)] = np.arange(len(rows))
        return np.lexsort((rank, -facts["length"], -facts["score"], facts["priority"]))


def mark_whole(folder: Path, count: int) -> int:
    """Note, last of all, that a shard's scan is whole and holds `count` rows; the count."""
    write_json(folder / "count.json", count)
    return count


def whole_count(folder: Path) -> int | None:
    """The rows of a scan that an interrupted run left whole, or None."""
    path = folder / "count.json"
    return int(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def save_array(path: Path, array: np.ndarray) -> None:
    """Write one array as .npy, atomically against a killed process (no wait for the disk: scratch is made again)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{MACHINE}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    temporary.replace(path)


@lru_cache(maxsize=_OPEN_ARRAYS)
def _mapped(path: Path, size: int, modified: int) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def load_array(path: Path) -> np.ndarray:
    """Open one .npy file memory-mapped; ValueError, in one line, for a missing or truncated one."""
    try:
        stat = path.stat()
        return _mapped(path, stat.st_size, stat.st_mtime_ns)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: missing or cut short ({error}); remove its folder and build it again") from error
