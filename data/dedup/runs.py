"""Grouping by a 64-bit key with bounded memory: sorted runs on disk, merged range by range.

Each shard writes one run: its (key, row) pairs sorted by key. To find equal keys over all shards, the key space is cut
into ranges that fit the memory budget; the pairs of a range lie together in every run, so a range is read with one
contiguous slice per run, sorted, and cut into groups. Ranges are independent: they are what workers share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from data.dedup.rows import load_array, save_array

VERSION = 1

KEY_SPACE = 1 << 64
PAIRS_PER_TASK = 1 << 20
_BYTES_PER_PAIR = 64  # peak bytes a pair while a range is sorted: two arrays, their copies and the sort order


@dataclass(frozen=True, slots=True)
class Range:
    """One piece of the key space of some runs: keys k with low <= k < high."""

    runs: tuple[str, ...]  # folders that hold keys.npy and rows.npy
    starts: tuple[int, ...]  # the global row of each run's row 0
    low: int
    high: int
    label: str = ""


def write_run(folder: Path, keys: np.ndarray, rows: np.ndarray) -> None:
    """Write the pairs of one shard sorted by (key, row): keys uint64 [n], rows int64 [n] within the shard."""
    order = np.lexsort((rows, keys))
    save_array(folder / "rows.npy", rows[order].astype(np.int64))
    save_array(folder / "keys.npy", keys[order])


def plan_ranges(runs: Sequence[Path], starts: Sequence[int], memory_bytes: int, label: str = "") -> list[Range]:
    """Cut the key space so that each range is sorted within `memory_bytes`.

    There is one range for every `PAIRS_PER_TASK` pairs at least: work to share. A range that holds one single key is
    never cut: it is sorted in one piece.
    """
    keys = [load_array(run / "keys.npy") for run in runs]
    limit = max(memory_bytes // _BYTES_PER_PAIR, 1)
    names = tuple(str(run) for run in runs)

    def place(bound: int) -> np.ndarray:
        if bound >= KEY_SPACE:
            return np.array([len(k) for k in keys])
        return np.array([np.searchsorted(k, np.uint64(bound)) for k in keys])

    parts = sum(map(len, keys)) // PAIRS_PER_TASK + 1
    cuts = [KEY_SPACE * part // parts for part in range(parts + 1)]
    todo = [(low, high, place(low), place(high)) for low, high in pairwise(cuts)][::-1]
    ranges = []
    while todo:
        low, high, first, last = todo.pop()
        total = int((last - first).sum())
        if total > limit and high - low > 1:
            middle = (low + high) // 2
            at = place(middle)
            todo += [(middle, high, at, last), (low, middle, first, at)]
        elif total:
            ranges.append(Range(names, tuple(starts), low, high, label))
    return ranges


def sorted_pairs(piece: Range) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of one range sorted by (key, global row): keys and rows."""
    all_keys, all_rows = [], []
    for folder, start in zip(piece.runs, piece.starts):
        keys = load_array(Path(folder) / "keys.npy")
        first = np.searchsorted(keys, np.uint64(piece.low))
        last = len(keys) if piece.high >= KEY_SPACE else np.searchsorted(keys, np.uint64(piece.high))
        if last > first:
            all_keys.append(np.asarray(keys[first:last]))
            all_rows.append(np.asarray(load_array(Path(folder) / "rows.npy")[first:last]) + start)
    if not all_keys:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    keys, rows = np.concatenate(all_keys), np.concatenate(all_rows)
    del all_keys, all_rows
    order = np.lexsort((rows, keys))
    return keys[order], rows[order]


def groups(piece: Range) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of one range whose key occurs more than once, sorted by (key, global row): keys and rows."""
    keys, rows = sorted_pairs(piece)
    same = keys[1:] == keys[:-1]
    repeated = np.zeros(len(keys), bool)
    repeated[1:] |= same
    repeated[:-1] |= same
    return keys[repeated], rows[repeated]


def split_groups(keys: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of each group of equal keys, in key order."""
    cuts = np.flatnonzero(keys[1:] != keys[:-1]) + 1
    yield from np.split(rows, cuts) if len(rows) else ()
