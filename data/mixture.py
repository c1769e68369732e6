"""Which source each row comes from: a fixed, even interleaving, random access by row number.

Weights are shares of tokens. Rows are not equally full, so they are interleaved by the tokens that they hold: after any
row, every source has had its share of all tokens so far to within about one row, and any 1,000 consecutive rows meet
the weights within 0.3 percentage points of their tokens.

Time runs with the tokens. A period of it is planned at once, from the lengths of exactly the rows that fall into it,
so a row's source is a pure function of its number. A curriculum is a list of phases, each with weights of its own from
some row on.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

PERIOD = 1 << 13  # average rows planned at once
PERIODS_KEPT = 8  # about 200 kB each


class Rows(Protocol):
    """The endless sequence of rows of one source, with the tokens in each (`data.row_order.RowOrder`)."""

    @property
    def average(self) -> float:
        """Pairs of an input and its target in a row, on average."""
        ...

    def sizes(self, first: int, count: int) -> np.ndarray:
        """Pairs in each of `count` rows from this one on."""
        ...

    def pairs_before(self, item: int) -> int:
        """Pairs in all rows before this one."""
        ...

    def first_item(self, pairs: float) -> int:
        """The first row that has at least so many pairs before it."""
        ...


class Mixture:
    """An interleaving of sources.

    phases: (first row, weight of each source) in order, the first from row 0; weights are shares of tokens on any
    scale, 0 for a source that the phase leaves out.
    """

    def __init__(self, phases: Sequence[tuple[int, Sequence[float]]], rows: Sequence[Rows]):
        self._rows = rows
        self._first = np.array([first for first, _ in phases], np.int64)
        self._weights = [np.asarray(weights, np.float64) / np.sum(weights) for _, weights in phases]
        self._before = [np.zeros(len(rows), np.int64)]  # rows of each source before each phase, as far as known
        self._start = lru_cache(16 * PERIODS_KEPT)(self._start_uncached)
        self._period = lru_cache(PERIODS_KEPT)(self._period_uncached)

    @property
    def row_shares(self) -> np.ndarray:
        """Share of rows of each source in the first phase."""
        shares = self._weights[0] / [rows.average for rows in self._rows]
        return shares / shares.sum()

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For global row numbers: the source of each and which of that source's rows it is, counted from 0."""
        rows = np.asarray(rows, np.int64)
        sources, items = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        todo = np.ones(len(rows), bool)
        while todo.any():
            first, source, item = self._planned(int(rows[todo][0]))
            mine = todo & (rows >= first) & (rows < first + len(source))
            sources[mine], items[mine] = source[rows[mine] - first], item[rows[mine] - first]
            todo &= ~mine
        return sources, items

    def rows_before(self, row: int) -> np.ndarray:
        """How many of the first `row` global rows each source has."""
        if not row:
            return self._before[0]
        phase = int(np.searchsorted(self._first, row, "left")) - 1  # the one that row - 1 is in
        period = self._period_of(phase, row - 1)
        first, counts = self._period_start(phase, period)
        done = self._period(phase, period)[0][: row - first]
        return self._phase_start(phase) + counts + np.bincount(done, minlength=len(counts))

    def _planned(self, row: int) -> tuple[int, np.ndarray, np.ndarray]:
        """The first row of the period that holds `row`, and the sources and items of its rows within the phase."""
        phase = int(np.searchsorted(self._first, row, "right")) - 1
        period = self._period_of(phase, row)
        first, _ = self._period_start(phase, period)
        source, item = self._period(phase, period)
        end = int(self._first[phase + 1]) if phase + 1 < len(self._first) else first + len(source)
        return first, source[: end - first], item[: end - first]

    def _phase_start(self, phase: int) -> np.ndarray:
        """Rows of each source before a phase."""
        while len(self._before) <= phase:
            self._before.append(self.rows_before(int(self._first[len(self._before)])))
        return self._before[phase]

    def _tokens(self, phase: int) -> float:
        """Tokens in a period of a phase."""
        weights = self._weights[phase]
        return PERIOD / float((weights / [rows.average for rows in self._rows]).sum())

    def _period_of(self, phase: int, row: int) -> int:
        """The period of a phase that a global row falls into."""
        period = (row - int(self._first[phase])) // PERIOD  # right but for how full the rows before happen to be
        while self._period_start(phase, period)[0] > row:
            period -= 1
        while self._period_start(phase, period + 1)[0] <= row:
            period += 1
        return period

    def _period_start(self, phase: int, period: int) -> tuple[int, np.ndarray]:
        """The first global row of a period, and the rows of each source in the phase before it."""
        counts = self._start(phase, period)
        return int(self._first[phase]) + int(counts.sum()), counts

    def _start_uncached(self, phase: int, period: int) -> np.ndarray:
        """Rows of each source before a period: its share, rounded so that all together are right (largest remainders).

        Rounding each source by itself would let many small ones run ahead together, at the cost of a large one.
        """
        base, tokens = self._phase_start(phase), self._tokens(phase) * period
        counts, begun = np.zeros(len(base), np.int64), []  # begun: (-progress, source, size) of a row that lies across
        missing = 0.0
        for source, (rows, first, weight) in enumerate(zip(self._rows, base.tolist(), self._weights[phase].tolist())):
            target = rows.pairs_before(first) + weight * tokens
            item = rows.first_item(target)
            if item > first and (over := rows.pairs_before(item) - target) > 0:
                size = int(rows.sizes(item - 1, 1)[0])
                item -= 1
                missing += size - over
                begun.append((over / size - 1, source, size))
            counts[source] = item - first
        for _, source, size in sorted(begun):
            if missing > size / 2:
                counts[source] += 1
                missing -= size
        return counts

    def _period_uncached(self, phase: int, period: int) -> tuple[np.ndarray, np.ndarray]:
        """The source and the item of each row of one period."""
        base, length = self._phase_start(phase), self._tokens(phase)
        first, last = (base + self._start(phase, number) for number in (period, period + 1))
        sizes, times, done = [], [], 0.0
        for rows, weight, begin, low, high in zip(
            self._rows, self._weights[phase].tolist(), base.tolist(), first.tolist(), last.tolist()
        ):
            size = rows.sizes(low, high - low)
            before = rows.pairs_before(low) - rows.pairs_before(begin) if weight else 0
            ends = before + np.concatenate([[0], np.cumsum(size)])
            sizes.append(size)
            times.append(ends / (weight * length or 1.0) - period)
            done += before
        pattern = spread(sizes, times, done / length - period, length)
        items = np.empty(len(pattern), np.int64)
        for source, start in enumerate(first.tolist()):
            places = np.flatnonzero(pattern == source)
            items[places] = start + np.arange(len(places))
        return pattern, items


def spread(sizes: Sequence[np.ndarray], times: Sequence[np.ndarray], now: float, length: float) -> np.ndarray:
    """A sequence of sources in which source s stands len(sizes[s]) times, its items in order.

    sizes[s][j]: tokens in item j of source s. It may stand from time times[s][j] on, when the source's earlier items
    have had their share, and is due at times[s][j + 1]; of the items that may stand, the one due first comes (Tijdeman,
    The chairman assignment problem, 1980, for items of any size). `length` tokens take one unit of time, from `now` on.
    """
    due, lengths = [time.tolist() for time in times], [size.tolist() for size in sizes]
    waiting = [(due[source][0], source, 0) for source, size in enumerate(sizes) if len(size)]  # (from, source, item)
    heapq.heapify(waiting)
    ready: list[tuple[float, int, int]] = []  # (due, source, item)
    pattern = np.empty(sum(map(len, sizes)), np.int64)
    for place in range(len(pattern)):
        # 1e-9 of a period is less than a token: the same moment may have been reached by another sum
        while waiting and (waiting[0][0] <= now + 1e-9 or not ready):
            _, source, item = heapq.heappop(waiting)
            heapq.heappush(ready, (due[source][item + 1], source, item))
        _, source, item = heapq.heappop(ready)
        pattern[place] = source
        now += lengths[source][item] / length
        if item + 1 < len(lengths[source]):
            heapq.heappush(waiting, (due[source][item + 1], source, item + 1))
    return pattern
