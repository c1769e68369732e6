"""The verdicts: candidates are compared by their true shingle sets, in the order of the survivor policy.

A document is removed if and only if a document that was kept before it has Jaccard similarity >= threshold with it (and
shares a band). So no two kept documents are a verified pair, and none goes for a neighbour of a neighbour.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.dedup.rows import Rows, load_array

VERSION = 1


@dataclass(frozen=True, slots=True)
class ShingleFiles:
    """The shingle sets of all rows: per shard a folder with hashes.npy (uint64, sorted in each set) and offsets.npy.

    bands: per shard the file of band keys, uint64 [rows, bands].
    """

    rows: Rows
    bands: tuple[str, ...]

    def sets(self, rows: np.ndarray) -> list[np.ndarray]:
        """The shingle set of each row: a view of the memory-mapped file."""
        out: list[np.ndarray] = [np.empty(0, np.uint64)] * len(rows)
        for shard, where, local in self.rows.shards_of(rows):
            folder = self.rows.folders[shard]
            offsets = load_array(folder / "offsets.npy")
            hashes = np.asarray(load_array(folder / "hashes.npy"))
            for place, start, stop in zip(where.tolist(), offsets[local].tolist(), offsets[local + 1].tolist()):
                out[place] = hashes[start:stop]
        return out

    def keys(self, rows: np.ndarray) -> np.ndarray:
        """The band keys of some rows: uint64 [rows, bands]."""
        parts = self.rows.shards_of(rows)
        bands = load_array(Path(self.bands[0])).shape[1]
        out = np.empty((len(rows), bands), np.uint64)
        for shard, where, local in parts:
            out[where] = load_array(Path(self.bands[shard]))[local]
        return out


@dataclass(slots=True)
class Verdicts:
    """Removed rows with partner rows and similarities, and how many removals each cluster has."""

    rows: list[int]
    partners: list[int]
    values: list[float]


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Jaccard similarity of two sorted arrays without repeats."""
    if len(one) < len(other):
        one, other = other, one
    if not len(other):
        return 0.0
    places = one.searchsorted(other)
    places[places == len(one)] = 0
    common = int(np.count_nonzero(one[places] == other))
    return common / (len(one) + len(other) - common)


def verify(rows: np.ndarray, files: ShingleFiles, threshold: float, first_old: int) -> Verdicts:
    """Verdicts on the documents of some whole components.

    rows: global rows (int64), each once. Rows >= first_old belong to an index: they come first and are always kept.
    The partner is the kept document with the highest similarity, of equals the first by policy.
    """
    order = files.rows.order(rows)
    rows = rows[order]
    rows = np.concatenate((rows[rows >= first_old], rows[rows < first_old]))
    sets = files.sets(rows)
    sizes = [len(found) for found in sets]
    shared = _shared_keys(files.keys(rows))
    holders: defaultdict[int, list[int]] = defaultdict(list)  # band key -> kept documents that have it
    removed: list[tuple[int, int, float]] = []
    old = int((rows >= first_old).sum())
    for place in range(len(rows)):
        keys = shared[place]
        if place >= old:
            candidates = sorted({kept for key in keys for kept in holders[key]})
            best, partner = 0.0, -1
            for kept in candidates:
                small, large = sorted((sizes[place], sizes[kept]))
                if small < threshold * large:
                    continue  # even a subset would be too different
                value = jaccard(sets[place], sets[kept])
                if value >= threshold and value > best:
                    best, partner = value, kept
            if partner >= 0:
                removed.append((int(rows[place]), int(rows[partner]), best))
                continue
        for key in keys:
            holders[key].append(place)
    return Verdicts([r for r, _, _ in removed], [p for _, p, _ in removed], [v for _, _, v in removed])


def _shared_keys(keys: np.ndarray) -> Sequence[list[int]]:
    """For each document numbers of its band keys that another document here has too."""
    numbers = np.empty(keys.shape, np.int64)
    used = 0
    for band in range(keys.shape[1]):
        _, inverse, counts = np.unique(keys[:, band], return_inverse=True, return_counts=True)
        numbers[:, band] = np.where(counts[inverse] > 1, inverse + used, -1)
        used += len(counts)
    lists: Any = numbers.tolist()
    return [[number for number in row if number >= 0] for row in lists]
