"""Sources are interleaved by their tokens, evenly, at random access; curricula do what they say."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import count as counting
from pathlib import Path

import numpy as np
import pytest

from data.loader import LoaderConfig, open_loader
from data.mixture import PERIOD, Mixture, spread
from tests.data.token_data import build, stdlib_documents

WEIGHTS = (
    [1.0],
    [1, 1],
    [0.5, 0.5],
    [0.7, 0.2, 0.1],
    [5, 4, 3, 2, 1],
    [1e-9, 1.0],
    list(range(1, 61)),
    [59] + [1] * 59,
)


class Repeated:
    """Rows of the given sizes, over and over."""

    def __init__(self, sizes: np.ndarray):
        self.once, self.ends = sizes, np.cumsum(sizes)
        self.average = float(sizes.mean())

    def sizes(self, first: int, count: int) -> np.ndarray:
        return self.once[np.arange(first, first + count) % len(self.once)]

    def pairs_before(self, item: int) -> int:
        epoch, rank = divmod(item, len(self.once))
        return epoch * int(self.ends[-1]) + (int(self.ends[rank - 1]) if rank else 0)

    def first_item(self, pairs: float) -> int:
        epoch = int(pairs // self.ends[-1])
        return next(i for i in counting(epoch * len(self.once)) if self.pairs_before(i) >= pairs)


def uneven(count: int) -> list[Repeated]:
    """Rows from a quarter full to full, each source with its own habit."""
    rng = np.random.default_rng(0)
    return [Repeated(rng.integers(250, 600 + 400 * (s % 3) // 2, 50 + 137 * (s % 7))) for s in range(count)]


def worst_share_error(mixture: Mixture, weights: list[float], rows: np.ndarray, sizes: list[Repeated]) -> float:
    """Over all windows of 1,000 rows and all sources, in shares of tokens."""
    source, item = mixture.locate(rows)
    tokens = np.array([int(sizes[s].sizes(i, 1)[0]) for s, i in zip(source.tolist(), item.tolist())])
    total = np.concatenate([[0], np.cumsum(tokens)])
    worst = 0.0
    for number, share in enumerate(np.asarray(weights) / np.sum(weights)):
        mine = np.concatenate([[0], np.cumsum(np.where(source == number, tokens, 0))])
        found = (mine[1000:] - mine[:-1000]) / (total[1000:] - total[:-1000])
        worst = max(worst, float(np.abs(found - share).max()))
    return worst


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda w: f"{len(w)}:{w[0]}")
def test_any_1000_rows_meet_the_weights_in_tokens(weights: list[float]) -> None:
    sizes = uneven(len(weights))
    mixture = Mixture([(0, weights)], sizes)
    rows = np.arange(PERIOD - 3000, PERIOD + 3000)  # across the end of a period
    assert worst_share_error(mixture, weights, rows, sizes) < 0.003


def test_rows_alone_would_not_do() -> None:
    """The same schedule without knowing the lengths of rows misses: the test above can fail."""
    sizes = uneven(2)
    alike = [Repeated(np.full(10, round(rows.average))) for rows in sizes]
    assert worst_share_error(Mixture([(0, [1, 1])], alike), [1, 1], np.arange(4000), sizes) > 0.003


def test_weights_hold_where_the_rows_of_a_source_grow_and_shrink() -> None:
    slow = [Repeated(np.r_[np.full(20_000, 900), np.full(20_000, 300)]), Repeated(np.full(7, 500))]
    mixture = Mixture([(0, [1, 1])], slow)
    for first in (PERIOD // 2, 30_000, 10**6):
        assert worst_share_error(mixture, [1, 1], np.arange(first, first + 4000), slow) < 0.003


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda w: f"{len(w)}:{w[0]}")
def test_each_source_is_read_in_order_without_gaps(weights: list[float]) -> None:
    mixture = Mixture([(0, weights)], uneven(len(weights)))
    rows = np.arange(2 * PERIOD + 777)
    source, item = mixture.locate(rows)
    for number in range(len(weights)):
        mine = item[source == number]
        assert (mine == np.arange(len(mine))).all()
    some = np.random.default_rng(0).permutation(rows)[:1000]
    assert (mixture.locate(some)[0] == source[some]).all() and (mixture.locate(some)[1] == item[some]).all()
    for row in (0, 1, 777, PERIOD, PERIOD + 1):
        assert mixture.rows_before(row).tolist() == np.bincount(source[:row], minlength=len(weights)).tolist()


def test_a_curriculum_changes_at_its_row_and_no_row_is_lost() -> None:
    phases = [(0, [1.0, 3.0, 0.0]), (PERIOD + 5000, [2.0, 1.0, 1.0]), (PERIOD + 7500, [0.0, 1.0, 9.0])]
    sizes = uneven(3)
    mixture = Mixture(phases, sizes)
    ends = [first for first, _ in phases[1:]] + [PERIOD + 12_000]
    for (first, weights), end in zip(phases, ends):
        assert worst_share_error(mixture, weights, np.arange(max(first, end - 4000), end), sizes) < 0.003
    source, item = mixture.locate(np.arange(ends[-1]))
    for number in range(3):
        assert (item[source == number] == np.arange((source == number).sum())).all()
    assert not (source[: phases[1][0]] == 2).any() and not (source[phases[2][0] :] == 0).any()
    late = Mixture(phases, uneven(3))  # as after a restart: the last rows first
    assert (late.locate(np.arange(ends[-1] - 100, ends[-1]))[1] == item[-100:]).all()
    assert late.rows_before(ends[-1]).tolist() == np.bincount(source).tolist()


def test_rows_alike_are_never_off_by_more_than_a_row() -> None:
    rng = np.random.default_rng(0)
    for count in (2, 3, 5, 17):
        shares = rng.dirichlet(np.ones(count))
        mixture = Mixture([(0, shares.tolist())], [Repeated(np.full(4, 256))] * count)
        seen = np.cumsum(np.eye(count)[mixture.locate(np.arange(4096))[0]], axis=0)
        assert np.abs(seen - np.outer(np.arange(1, 4097), shares)).max() <= 1


def test_spread_gives_turns() -> None:
    sizes = [np.full(4, 10), np.full(2, 20)]
    times = [np.arange(5) / 4, np.arange(3) / 2]
    assert spread(sizes, times, 0.0, 80.0).tolist() == [0, 1, 0, 0, 1, 0]


def test_weights_are_shares_of_tokens_not_rows() -> None:
    mixture = Mixture([(0, [1, 1])], [Repeated(np.full(3, 100)), Repeated(np.full(3, 50))])
    assert mixture.row_shares == pytest.approx([1 / 3, 2 / 3], abs=1e-4)


def test_a_period_is_planned_quickly() -> None:
    mixture = Mixture([(0, list(range(1, 61)))], uneven(60))
    begin = time.process_time()
    mixture.locate(np.arange(5))
    assert time.process_time() - begin < 1.0  # s; 0.1 here


@pytest.fixture(scope="module")
def three_sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    documents = [
        replace(document, source="tests") if document.source == "prose" and number % 3 == 0 else document
        for number, document in enumerate(stdlib_documents(25))
    ]
    return build(tmp_path_factory.mktemp("three"), documents)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_any_1000_rows_of_a_dataset_meet_the_weights_on_every_number_of_processes(
    three_sources: Path, processes: int
) -> None:
    weights = {"code": 0.5, "prose": 0.3, "tests": 0.2}
    config = LoaderConfig(seq_len=64, global_batch_size=8, weights=tuple(weights.items()))
    loaders = [open_loader(three_sources, config, process_index=p, process_count=processes) for p in range(processes)]
    tokens, sources = [], []
    for step in range(250):
        for loader in loaders:  # their rows one after another are the global batch
            tokens += (loader.batch(step)["segment_ids"] > 0).sum(1).tolist()
        sources += [info.source for info in loaders[-1].rows_of(step)]
    total = np.cumsum([0, *tokens])
    for source, weight in weights.items():
        mine = np.cumsum([0, *np.where(np.array(sources) == source, tokens, 0)])
        shares = (mine[1000:] - mine[:-1000]) / (total[1000:] - total[:-1000])
        assert np.abs(shares - weight).max() < 0.003
