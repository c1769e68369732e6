"""Sources are interleaved evenly, at random access."""

from __future__ import annotations

import numpy as np
import pytest

from data.mixture import PERIOD, Mixture, spread, token_weights, whole_shares

WEIGHTS = ([1.0], [1, 1], [0.5, 0.5], [0.7, 0.2, 0.1], [5, 4, 3, 2, 1], [1e-9, 1.0], list(range(1, 61)))


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda w: f"{len(w)}:{w[0]}")
def test_any_1000_rows_meet_the_weights(weights: list[float]) -> None:
    mixture = Mixture(weights, [1.0] * len(weights))
    start = PERIOD - 5000  # across the end of a period
    source, _ = mixture.locate(np.arange(start, start + 20_000))
    shares = np.asarray(weights) / np.sum(weights)
    for number, share in enumerate(shares):
        seen = np.concatenate([[0], np.cumsum(source == number)])
        error = np.abs((seen[1000:] - seen[:-1000]) / 1000 - share)
        assert error.max() < 0.003


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda w: f"{len(w)}:{w[0]}")
def test_each_source_is_read_in_order_without_gaps(weights: list[float]) -> None:
    mixture = Mixture(weights, [1.0] * len(weights))
    rows = np.arange(2 * PERIOD + 777)
    source, ordinal = mixture.locate(rows)
    for number in range(len(weights)):
        mine = ordinal[source == number]
        assert (mine == np.arange(len(mine))).all()
        assert len(mine) >= 2
    some = np.random.default_rng(0).permutation(rows)[:1000]
    assert (mixture.locate(some)[0] == source[some]).all() and (mixture.locate(some)[1] == ordinal[some]).all()


def test_no_prefix_is_off_by_more_than_a_row() -> None:
    rng = np.random.default_rng(0)
    for count in (2, 3, 5, 17):
        counts = whole_shares(rng.dirichlet(np.ones(count)), 4096)
        seen = np.cumsum(np.eye(count)[spread(counts)], axis=0)
        share = np.outer(np.arange(1, 4097), counts / 4096)
        assert np.abs(seen - share).max() < 1


def test_weights_are_shares_of_tokens_not_rows() -> None:
    mixture = Mixture([1, 1], [100.0, 50.0])
    assert mixture.row_shares == pytest.approx([1 / 3, 2 / 3], abs=1e-4)


def test_default_is_proportional_to_tokens() -> None:
    assert token_weights({}, {"a": 30, "b": 10, "none": 0}) == {"a": 30.0, "b": 10.0}
    assert token_weights({"b": 2}, {"a": 30, "b": 10}) == {"b": 2.0}


@pytest.mark.parametrize(
    ("weights", "tokens", "message"),
    [
        ({"c": 1}, {"a": 1, "b": 1}, "names source 'c'; the dataset has a, b"),
        ({"a": 0}, {"a": 1}, "a=0; a weight is above 0"),
        ({"a": -1}, {"a": 1}, "a=-1; a weight is above 0"),
        ({"a": float("nan")}, {"a": 1}, "a=nan; a weight is above 0"),
        ({"a": 1, "b": 1}, {"a": 1, "b": 0}, "source 'b' has no tokens"),
        ({}, {"a": 0}, "no tokens in any source"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(weights: dict, tokens: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_weights(weights, tokens)
