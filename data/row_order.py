"""In which order a source's rows are read, epoch after epoch, and how many tokens lie before each.

Every epoch visits each row of a source's plan (data.pack) once: windows in a shuffled order, rows shuffled within their
window, so that reads stay near. Both are random access: no row needs the rows before it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import xxhash

from data.pack import Plan

GOLDEN, MIX_1, MIX_2 = (
    np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)  # SplitMix64
EPOCHS_KEPT, WINDOWS_KEPT = 16, 64  # orders kept at once


class RowOrder:
    """The endless sequence of rows of one source: item 0, 1, 2, ... of it are rows of its plan."""

    def __init__(self, plan: Plan, source: str, seed: int):
        self._plan, self._source, self._seed = plan, source, seed
        piece_first = plan.row_first[plan.window_first]
        self._window_pairs = np.diff([0, *np.cumsum(plan.piece_length, dtype=np.int64)[piece_first[1:] - 1].tolist()])
        self.rows, self.pairs = plan.rows, int(self._window_pairs.sum())
        self._epoch = lru_cache(EPOCHS_KEPT)(self._epoch_uncached)
        self._window = lru_cache(WINDOWS_KEPT)(self._window_uncached)

    @property
    def average(self) -> float:
        """Pairs in a row."""
        return self.pairs / self.rows

    def row(self, item: int) -> tuple[int, int]:
        """(epoch, row of the plan) of one item."""
        epoch, rank = divmod(item, self.rows)
        order, row_ends, _ = self._epoch(epoch)
        place = int(np.searchsorted(row_ends, rank, "right"))
        within = rank - (int(row_ends[place - 1]) if place else 0)
        window = int(order[place])
        return epoch, int(self._plan.window_first[window]) + int(self._window(epoch, window)[0][within])

    def sizes(self, first: int, count: int) -> np.ndarray:
        """Pairs in each of `count` items from item `first` on."""
        sizes, done = np.empty(count, np.int64), 0
        while done < count:
            epoch, rank = divmod(first + done, self.rows)
            order, row_ends, _ = self._epoch(epoch)
            place = int(np.searchsorted(row_ends, rank, "right"))
            within = rank - (int(row_ends[place - 1]) if place else 0)
            part = self._window(epoch, int(order[place]))[1][within : within + count - done]
            sizes[done : done + len(part)] = part
            done += len(part)
        return sizes

    def pairs_before(self, item: int) -> int:
        """Pairs in all items before this one."""
        epoch, rank = divmod(item, self.rows)
        order, row_ends, pair_ends = self._epoch(epoch)
        place = int(np.searchsorted(row_ends, rank, "right"))
        within = rank - (int(row_ends[place - 1]) if place else 0)
        before = int(pair_ends[place - 1]) if place else 0
        part = self._window(epoch, int(order[place]))[1][:within]
        return epoch * self.pairs + before + int(part.sum())

    def first_item(self, pairs: float) -> int:
        """The first item that has at least so many pairs before it."""
        epoch = int(pairs // self.pairs)
        rest = pairs - epoch * self.pairs
        order, row_ends, pair_ends = self._epoch(epoch)
        place = int(np.searchsorted(pair_ends, rest, "left"))
        if place == len(pair_ends):
            return (epoch + 1) * self.rows
        before = int(pair_ends[place - 1]) if place else 0
        sizes = self._window(epoch, int(order[place]))[1]
        starts = before + np.cumsum(sizes) - sizes
        first = int(row_ends[place - 1]) if place else 0
        return epoch * self.rows + first + int(np.searchsorted(starts, rest, "left"))

    def _epoch_uncached(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The windows of an epoch in order, and the rows and pairs up to the end of each."""
        rows = np.diff(self._plan.window_first)
        order = permutation(len(rows), self._seed, self._source, epoch, -1)
        return order, np.cumsum(rows[order]), np.cumsum(self._window_pairs[order])

    def _window_uncached(self, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of a window in the order of an epoch, and the pairs in each."""
        plan = self._plan
        first, last = plan.window_first[window : window + 2].tolist()
        order = permutation(last - first, self._seed, self._source, epoch, window)
        starts = plan.row_first[first:last]
        lengths = plan.piece_length[int(starts[0]) : int(plan.row_first[last])]
        return order, np.add.reduceat(lengths, starts - starts[0], dtype=np.int64)[order]


def permutation(size: int, seed: int, source: str, epoch: int, window: int) -> np.ndarray:
    """A permutation of range(size) that depends on its arguments only, not on a library's generator."""
    key = np.uint64(xxhash.xxh64_intdigest(f"{seed}/{source}/{epoch}/{window}".encode()))
    with np.errstate(over="ignore"):
        value = (np.arange(1, size + 1, dtype=np.uint64) * GOLDEN) + key
        value = (value ^ (value >> np.uint64(30))) * MIX_1
        value = (value ^ (value >> np.uint64(27))) * MIX_2
    return np.argsort(value ^ (value >> np.uint64(31)), kind="stable")
