"""Grouping by a 64-bit key with bounded memory: sorted runs on disk, merged range by range.

Each shard writes one run: its (key, row) pairs sorted by key. To find equal keys over all shards, the key space is cut
into ranges that fit the memory budget; the pairs of a range lie together in every run, so a range is read with one
contiguous slice per run, sorted, and cut into groups. Ranges are independent: they are what workers share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.dedup.rows import load_array, save_array

VERSION = 1

KEY_SPACE = 1 << 64
PAIRS_PER_TASK = 1 << 20
_BYTES_PER_PAIR = 64  # peak bytes a pair while a range is sorted: two arrays, their copies and the sort order


@dataclass(frozen=True, slots=True)
class Range:
    """One piece of the key space of some runs: keys k with low <= k < high, of one of their bands."""

    runs: tuple[str, ...]  # folders that hold keys.npy and places.npy
    starts: tuple[int, ...]  # the global row of each run's row 0
    low: int
    high: int
    band: int
    limit: int  # pairs that fit the memory


def write_run(folder: Path, keys: np.ndarray, rows: np.ndarray) -> None:
    """Write one shard's pairs sorted by (key, row): keys uint64 [n] or [n, bands], rows [n] within the shard."""
    bands = keys.T if keys.ndim == 2 else keys[None]
    kind = np.int32 if rows.max(initial=0) < 1 << 31 else np.int64
    ordered, places = np.empty(bands.shape, np.uint64), np.empty(bands.shape, kind)
    for band in range(len(bands)):
        order = np.lexsort((rows, bands[band]))
        ordered[band], places[band] = bands[band][order], rows[order]
    save_array(folder / "places.npy", places)
    save_array(folder / "keys.npy", ordered)


def plan_ranges(
    runs: Sequence[Path],
    starts: Sequence[int],
    memory_bytes: int,
    *,
    bands: int = 1,
    pairs_per_task: int = PAIRS_PER_TASK,
) -> list[Range]:
    """Cut the key space of every band so that each range is sorted within `memory_bytes`.

    There is one range for every `pairs_per_task` pairs at least: work to share. A range that holds one single key is
    never cut: it is sorted in one piece.
    """
    names, where = tuple(map(str, runs)), tuple(starts)
    limit = max(memory_bytes // _BYTES_PER_PAIR, 1)
    ranges = []
    for band in range(bands):
        keys = [_keys(name, band) for name in names]
        parts = sum(map(len, keys)) // pairs_per_task + 1
        cuts = [KEY_SPACE * part // parts for part in range(parts + 1)]
        bounds = [_place(keys, cut) for cut in cuts]
        todo = list(zip(cuts, cuts[1:], bounds, bounds[1:]))[::-1]
        while todo:
            low, high, first, last = todo.pop()
            total = int((last - first).sum())
            if total > limit and high - low > 1:
                middle = (low + high) // 2
                at = _place(keys, middle)
                todo += [(middle, high, at, last), (low, middle, first, at)]
            elif total:
                ranges.append(Range(names, where, low, high, band, limit))
    return ranges


def sorted_pairs(piece: Range) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of one range sorted by (key, global row): keys and rows.

    Raises ValueError when a single key has more rows than fit the memory.
    """
    all_keys, all_rows = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for name, start in zip(piece.runs, piece.starts):
        keys = _keys(name, piece.band)
        first, last = (int(_place([keys], bound)[0]) for bound in (piece.low, piece.high))
        if last > first:
            places = load_array(Path(name) / "places.npy")[piece.band]
            all_keys.append(np.asarray(keys[first:last]))
            all_rows.append(places[first:last].astype(np.int64) + start)
    if sum(map(len, all_rows)) > piece.limit:
        raise ValueError(
            f"{sum(map(len, all_rows)):,} documents share one key and must be looked at together, but memory_bytes "
            f"allows for {piece.limit:,}: remove what they have in common (a template?) or raise memory_bytes"
        )
    keys, rows = np.concatenate(all_keys), np.concatenate(all_rows)
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


def _keys(run: str, band: int) -> np.ndarray:
    return np.asarray(load_array(Path(run) / "keys.npy")[band])


def _place(keys: Sequence[np.ndarray], bound: int) -> np.ndarray:
    """How many keys of each sorted array are below a bound."""
    if bound >= KEY_SPACE:
        return np.array([len(k) for k in keys])
    return np.array([np.searchsorted(k, np.uint64(bound)) for k in keys])
