"""What the names, temperatures and caps of a mixture mean."""

from __future__ import annotations

from typing import Any

import pytest

from data.loader import LoaderConfig
from data.weights import EpochCap, Temperature, capped, check_names, token_weights, weight_phases

STREAMS = {"web:de": 600, "web:fr": 200, "books:de": 100, "code": 100}


def test_default_is_proportional_to_tokens() -> None:
    assert token_weights((), {"a": 30, "b": 10, "none": 0}) == {"a": 30.0, "b": 10.0}
    assert token_weights((("b", 2),), {"a": 30, "b": 10}) == {"b": 2.0}


def test_a_source_or_a_language_covers_its_parts_in_proportion() -> None:
    assert token_weights((("web", 8), ("code", 1)), STREAMS) == {"web:de": 6.0, "web:fr": 2.0, "code": 1.0}
    assert token_weights(((":de", 7), ("web:fr", 1)), STREAMS) == {"web:de": 6.0, "web:fr": 1.0, "books:de": 1.0}


def test_temperature_evens_out_what_it_is_over() -> None:
    equal = token_weights(Temperature(alpha=0), STREAMS)
    assert len(set(equal.values())) == 1
    assert token_weights(Temperature(alpha=1), STREAMS) == pytest.approx(STREAMS)
    by_language = token_weights(Temperature(alpha=0.5, over="language"), {k: v for k, v in STREAMS.items() if ":" in k})
    assert by_language["web:de"] + by_language["books:de"] == pytest.approx(700**0.5)
    assert by_language["web:de"] == pytest.approx(6 * by_language["books:de"])
    by_source = token_weights(Temperature(alpha=0.0, over="source"), STREAMS)
    assert by_source["web:de"] + by_source["web:fr"] == pytest.approx(by_source["books:de"])


def test_a_cap_moves_share_to_the_others() -> None:
    rows, tokens = {"small": 10, "big": 1000, "large": 3000}, {"small": 2560, "big": 256_000, "large": 768_000}
    phases = [(0, {"small": 1.0, "big": 1.0, "large": 2.0})]
    ((first, shares),) = capped(phases, EpochCap(epochs=4, steps=2000), rows, tokens)
    total = sum(shares.values())
    assert first == 0
    assert 2000 * shares["small"] / total == pytest.approx(40)
    assert shares["large"] / shares["big"] == pytest.approx(2)
    assert capped(phases, EpochCap(epochs=4, steps=100), rows, tokens)[0][1]["small"] > 0.2  # 25 rows: no cap met
    assert capped(phases, None, rows, tokens) is phases


def test_a_cap_counts_over_all_phases() -> None:
    rows, tokens = {"a": 100, "b": 10_000}, {"a": 25_600, "b": 2_560_000}
    phases = [(0, {"a": 1.0, "b": 1.0}), (1000, {"a": 3.0, "b": 1.0})]
    found = capped(phases, EpochCap(epochs=2, steps=2000), rows, tokens)
    shares = [part["a"] / sum(part.values()) for _, part in found]
    assert 1000 * sum(shares) == pytest.approx(200)
    assert shares[1] / shares[0] == pytest.approx(1.5)


PLAIN: dict[str, int] = {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: token_weights((("c", 1),), PLAIN), "names source 'c'; the dataset has a, b"),
        (lambda: token_weights((("a", 0),), PLAIN), "a=0; a weight is above 0"),
        (lambda: token_weights((("a", -1),), PLAIN), "a=-1; a weight is above 0"),
        (lambda: token_weights((("a", float("nan")),), PLAIN), "a=nan; a weight is above 0"),
        (lambda: token_weights((("a", 1), ("b", 1)), {"a": 1, "b": 0}), "source 'b' has no tokens"),
        (lambda: token_weights((("web", 1), (":de", 1)), STREAMS), "':de' covers 'web:de', which another weight"),
        (lambda: token_weights((("code", 1), ("code", 2)), STREAMS), "names 'code' 2 times"),
        (lambda: token_weights((), {"a": 0}), "no tokens in any source"),
        (lambda: token_weights(Temperature(over="language"), STREAMS), "'code' is not split by language"),
        (lambda: Temperature(alpha=1.5), "alpha=1.5; expected 0"),
        (lambda: Temperature(over="script"), "expected 'all', 'source' or 'language'"),  # type: ignore[arg-type]
        (lambda: weight_phases((), ((5, ()), (5, ())), PLAIN), r"changes begin at steps \[5, 5\]: expected rising"),
        (lambda: EpochCap(epochs=0, steps=10), "must be above 0"),
        (lambda: EpochCap(epochs=float("nan"), steps=10), "must be above 0"),
        (
            lambda: capped([(0, {"a": 1.0, "b": 1.0})], EpochCap(epochs=2, steps=500), {"a": 9, "b": 100}, PLAIN),
            "500 rows are asked for, but all sources hold only 218 in 2 epochs",
        ),
    ],
)
def test_weights_that_do_not_fit_are_one_line(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused_by_the_config(weight: float) -> None:
    wrong = (("a", 1.0), ("b", weight))
    for setting, match in (
        ({"weights": wrong}, f"loader.weights: b={weight}; a weight is above 0"),
        ({"changes": ((7, wrong),)}, f"loader.changes at step 7: b={weight}; a weight is above 0"),
        ({"changes": ((7, ()), (7, ()))}, r"begin at steps \[7, 7\]: expected rising"),
        ({"weights": (("a", 1.0), ("a", 2.0))}, "loader.weights names 'a' 2 times"),
    ):
        with pytest.raises(ValueError, match=match):
            LoaderConfig(seq_len=8, global_batch_size=1, **setting)  # type: ignore[arg-type]


def test_a_name_that_the_dataset_will_not_have_is_refused_before_it_is_built() -> None:
    sources = ("web", "books")
    for weights in ((("web", 1.0),), (("web:de", 1.0), (":fr", 1.0)), Temperature(over="language"), ()):
        check_names(weights, ((3, weights),), sources, True)
    for weights, split, match in (
        ((("wbe", 1.0),), True, "names source 'wbe'; data.sources are web, books"),
        ((("wbe:de", 1.0),), True, "names source 'wbe:de'; data.sources are web, books"),
        ((("web:de", 1.0),), False, r"is by language: set data\.split_languages=True"),
        (Temperature(over="language"), False, r"is by language: set data\.split_languages=True"),
    ):
        with pytest.raises(ValueError, match="^loader.weights " + match):
            check_names(weights, (), sources, split)
        with pytest.raises(ValueError, match="^loader.changes at step 3 " + match):
            check_names((), ((3, weights),), sources, split)
