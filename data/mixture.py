"""Which source each row comes from: a fixed, even interleaving, random access by row number.

Weights are shares of tokens. A source's rows are spread as evenly as whole rows allow: after any n rows it has had its
share of n to within one row, so any 1,000 consecutive rows meet the weights within 0.2 percentage points of rows.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import numpy as np

PERIOD = 1 << 16  # rows after which the interleaving repeats; shares are whole numbers of 1/65,536


class Mixture:
    """An interleaving of sources by `weights` (shares of tokens, any positive scale), given tokens per row of each.

    Rows of a source with fuller rows are drawn a little less often, so that tokens, not rows, meet the weights.
    """

    def __init__(self, weights: Sequence[float], tokens_per_row: Sequence[float]):
        shares = np.asarray(weights, np.float64) / np.asarray(tokens_per_row, np.float64)
        self._counts = whole_shares(shares / shares.sum(), PERIOD)
        self._pattern = spread(self._counts)
        ordinal = np.empty(PERIOD, np.int64)
        for source in range(len(self._counts)):
            places = np.flatnonzero(self._pattern == source)
            ordinal[places] = np.arange(len(places))
        self._ordinal = ordinal

    @property
    def row_shares(self) -> np.ndarray:
        """Share of rows of each source."""
        return self._counts / PERIOD

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For global row numbers: the source of each and which of that source's rows it is, counted from 0."""
        period, place = np.divmod(rows, PERIOD)
        source = self._pattern[place]
        return source, period * self._counts[source] + self._ordinal[place]


def whole_shares(shares: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers that sum to `total`, nearest to shares * total and at least 1 each (largest remainders)."""
    counts = np.maximum(np.floor(shares * total).astype(np.int64), 1)
    while counts.sum() != total:
        over = counts - shares * total
        if counts.sum() < total:
            counts[int(over.argmin())] += 1
        else:
            counts[int(np.where(counts > 1, over, -np.inf).argmax())] -= 1
    return counts


def spread(counts: np.ndarray) -> np.ndarray:
    """A sequence with counts[s] times s, every prefix within one of its share (earliest deadline first).

    Item j of s may stand from place floor(j / share) on and should stand before ceil((j + 1) / share); serving the
    earliest deadline among those that may stand keeps every deadline (Tijdeman, The chairman assignment problem, 1980).
    """
    total = int(counts.sum())
    waiting = [(0, source, 0) for source in range(len(counts))]  # (may stand from, source, item)
    heapq.heapify(waiting)
    ready: list[tuple[int, int, int]] = []  # (deadline, source, item)
    pattern = np.empty(total, np.int64)
    sizes = counts.tolist()
    for place in range(total):
        while waiting and waiting[0][0] <= place:
            _, source, item = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-(item + 1) * total // sizes[source]), source, item))
        _, source, item = heapq.heappop(ready)
        pattern[place] = source
        if item + 1 < sizes[source]:
            heapq.heappush(waiting, ((item + 1) * total // sizes[source], source, item + 1))
    return pattern


def token_weights(weights: Mapping[str, float], tokens: Mapping[str, int]) -> dict[str, float]:
    """Weights for sources with `tokens` each: the given ones, or proportional to tokens when none are given.

    Sources that given weights leave out are not used. Raises ValueError in one line for a source that is not there or
    has no tokens, or a weight that is not above 0.
    """
    if not weights:
        chosen = {source: float(count) for source, count in tokens.items() if count}
        if not chosen:
            raise ValueError("no tokens in any source: the training split is empty")
        return chosen
    for source, weight in weights.items():
        if source not in tokens:
            raise ValueError(f"loader.weights names source {source!r}; the dataset has {', '.join(sorted(tokens))}")
        if not 0 < weight < float("inf"):
            raise ValueError(
                f"loader.weights: {source}={weight}; a weight is above 0 (to not use a source, leave it out)"
            )
        if not tokens[source]:
            raise ValueError(f"loader.weights: source {source!r} has no tokens in this split")
    return {source: float(weights[source]) for source in tokens if source in weights}
