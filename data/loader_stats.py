"""What a loader tells of its rows and sources: values without behaviour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RowInfo:
    """Where a row of a global batch comes from.

    row: global row number. plan_row: the row in its source's plan. doc_ids: the document of each segment, in order.
    starts: the first pair of each segment within its document.
    """

    row: int
    source: str
    epoch: int
    plan_row: int
    doc_ids: tuple[str, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SourceStats:
    """One source of a split as the loader sees it; an epoch is `rows` rows.

    weight, row_share: its share of tokens and of rows, at step 0 where they change.
    """

    documents: int
    tokens: int
    num_bytes: int
    rows: int
    fill: float
    weight: float
    row_share: float

    def epochs(self, rows: int) -> float:
        """How often the source is seen in `rows` global rows."""
        return rows * self.row_share / self.rows


@dataclass(frozen=True, kw_only=True)
class LoaderStats:
    """rows: of one pass over every source. fill: share of places that hold a pair, in the mix that is drawn."""

    rows: int
    fill: float
    sources: dict[str, SourceStats]


def row_ranges(rows: Sequence[RowInfo]) -> tuple[tuple[int, int], ...]:
    """The global row numbers of rows as ranges for `LoaderConfig.skip`."""
    ranges: list[tuple[int, int]] = []
    for row in sorted(info.row for info in rows):
        if ranges and ranges[-1][1] == row:
            ranges[-1] = (ranges[-1][0], row + 1)
        else:
            ranges.append((row, row + 1))
    return tuple(ranges)
