"""How much of each source is trained on: fixed shares, a temperature, caps on epochs, changes at given steps.

A dataset whose token shards are split by language has a source for each language of a source, "web:de". Weights name
one ("web:de"), all languages of a source ("web"), or a language in all sources (":de"); what one name covers is shared
in proportion to tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

FixedWeights = tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """Shares proportional to tokens ** alpha: 1 as the data is, 0 all alike (Conneau et al. 2020 use 0.3).

    over: what is weighted so: every source and language apart ("all"), or sources or languages as wholes, whose parts
    are then in proportion to tokens.
    """

    alpha: float = 0.3
    over: Literal["all", "source", "language"] = "all"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"Temperature: alpha={self.alpha}; expected 0 (all alike) to 1 (as the data is)")
        if self.over not in ("all", "source", "language"):
            raise ValueError(f"Temperature: over={self.over!r}; expected 'all', 'source' or 'language'")


@dataclass(frozen=True, kw_only=True)
class EpochCap:
    """No source is seen more than `epochs` times in the first `steps` steps; others take its place in proportion.

    The shares stay the same over those steps (Chung et al. 2023, UniMax). Up to 4 epochs cost little (Muennighoff et
    al. 2023). `steps` is the length of the run; later steps go on with the same shares.
    """

    epochs: float = 4.0
    steps: int

    def __post_init__(self) -> None:
        if not self.epochs > 0 or self.steps < 1:  # so that NaN is refused
            raise ValueError(f"EpochCap: epochs={self.epochs} and steps={self.steps} must be above 0")


Weights = FixedWeights | Temperature
Phases = list[tuple[int, dict[str, float]]]  # (first step, share of tokens of each source that is used)


def check_weights(weights: Weights, changes: Sequence[tuple[int, Weights]]) -> None:
    """Refuse (ValueError, one line) what no dataset makes right: numbers, a name given twice, the order of changes.

    The line names the setting: loader.weights, or the one of loader.changes by its step.
    """
    steps = [0, *(step for step, _ in changes)]
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise ValueError(f"loader.changes begin at steps {steps[1:]}: expected rising numbers above 0")
    for setting, each in _settings(weights, changes):
        named = () if isinstance(each, Temperature) else each
        for name, weight in named:
            if not 0 < weight < float("inf"):
                raise ValueError(f"{setting}: {name}={weight}; a weight is above 0 (to not use a source, leave it out)")
        names = [name for name, _ in named]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{setting} names {name!r} {names.count(name)} times: give it one weight")


def check_names(
    weights: Weights, changes: Sequence[tuple[int, Weights]], sources: Sequence[str], split_languages: bool
) -> None:
    """Refuse (ValueError, one line) weights of a source that is none of `sources`, those that a dataset is built from.

    Which languages a dataset has is known when it is built; here, whether it is split by them at all.
    """
    for setting, each in _settings(weights, changes):
        by_language = each.over == "language" if isinstance(each, Temperature) else any(":" in name for name, _ in each)
        if by_language and not split_languages:
            raise ValueError(f"{setting} is by language: set data.split_languages=True, or weigh sources as wholes")
        for name, _ in () if isinstance(each, Temperature) else each:
            base, colon, _ = name.partition(":")
            if base not in sources and (base or not colon):
                raise ValueError(f"{setting} names source {name!r}; data.sources are {', '.join(sources)}")


def _settings(weights: Weights, changes: Sequence[tuple[int, Weights]]) -> list[tuple[str, Weights]]:
    """All weights with what they are called in a config."""
    return [("loader.weights", weights), *((f"loader.changes at step {step}", each) for step, each in changes)]


def weight_phases(weights: Weights, changes: Sequence[tuple[int, Weights]], tokens: Mapping[str, int]) -> Phases:
    """The weights from step 0 on and after each change, for sources with `tokens` each.

    Raises ValueError in one line for changes that are out of order and whatever `token_weights` refuses.
    """
    check_weights(weights, changes)
    steps = [0, *(step for step, _ in changes)]
    return [(step, token_weights(each, tokens)) for step, each in zip(steps, [weights, *(w for _, w in changes)])]


def token_weights(weights: Weights, tokens: Mapping[str, int]) -> dict[str, float]:
    """Shares for sources with `tokens` each, on any scale: proportional to tokens when none are given.

    Sources that given weights leave out are not used. Raises ValueError in one line for a source that is not there or
    has no tokens, one that is named twice, or a weight that is not above 0.
    """
    there = {source: count for source, count in tokens.items() if count}
    if not there:
        raise ValueError("no tokens in any source: the training split is empty")
    if isinstance(weights, Temperature):
        return _tempered(weights, there)
    if not weights:
        return {source: float(count) for source, count in there.items()}
    shares: dict[str, float] = {}
    check_weights(weights, ())
    for name, weight in weights:
        covered = [source for source in tokens if _covers(name, source)]
        if not covered:
            raise ValueError(f"loader.weights names source {name!r}; the dataset has {', '.join(sorted(tokens))}")
        total = sum(tokens[source] for source in covered)
        if not total:
            raise ValueError(f"loader.weights: source {name!r} has no tokens in this split")
        for source in covered:
            if source in shares:
                raise ValueError(f"loader.weights: {name!r} covers {source!r}, which another weight covers too")
            if tokens[source]:
                shares[source] = weight * tokens[source] / total
    return {source: shares[source] for source in tokens if source in shares}


def capped(phases: Phases, cap: EpochCap | None, rows: Mapping[str, int], tokens: Mapping[str, int]) -> Phases:
    """The phases with the shares of sources that would be seen too often cut down.

    rows, tokens: of one epoch of each source; `cap.steps` counts global batches of `rows` as `phases` does, so the
    caller gives both in rows. Raises ValueError in one line when all sources together hold too little.
    """
    if cap is None:
        return phases
    names = list(dict.fromkeys(name for _, weights in phases for name in weights))
    average = np.array([tokens[name] / rows[name] for name in names])
    limit = np.array([cap.epochs * rows[name] for name in names])
    starts = [first for first, _ in phases if first < cap.steps]
    lengths = np.diff([*starts, cap.steps]).astype(np.float64)
    share = np.array([[weights.get(name, 0.0) for name in names] for _, weights in phases]) / average
    share /= share.sum(1, keepdims=True)  # of rows, [phase, source]
    full = np.zeros(len(names), bool)
    while True:
        seen = lengths @ share[: len(lengths)]
        over = ~full & (seen > limit * (1 + 1e-9))
        if not over.any():
            break
        full |= over
        share[:, over] *= limit[over] / seen[over]
        rest = share[:, ~full].sum(1)
        missing = 1 - share[:, full].sum(1)
        if (rest <= 0).any():
            raise ValueError(
                f"loader.epoch_cap: {cap.steps:,} rows are asked for, but all sources hold only "
                f"{int(limit.sum()):,} in {cap.epochs:g} epochs; train for fewer steps or raise epochs"
            )
        share[:, ~full] *= (missing / rest)[:, None]
    parts = [dict(zip(names, row.tolist())) for row in share * average]
    return [(first, {n: w for n, w in part.items() if w > 0}) for (first, _), part in zip(phases, parts)]


def _covers(name: str, source: str) -> bool:
    base, colon, language = source.partition(":")
    return name == source or (bool(colon) and name in (base, f":{language}"))


def _tempered(temperature: Temperature, tokens: Mapping[str, int]) -> dict[str, float]:
    groups: dict[str, list[str]] = defaultdict(list)
    for source in tokens:
        base, _, language = source.partition(":")
        groups[{"all": source, "source": base, "language": language}[temperature.over]].append(source)
    if temperature.over == "language" and "" in groups:
        raise ValueError(
            f"Temperature(over='language'): source {groups[''][0]!r} is not split by language; set "
            "data.split_languages=True"
        )
    sizes = {name: sum(tokens[source] for source in members) for name, members in groups.items()}
    return {
        source: sizes[name] ** temperature.alpha * tokens[source] / sizes[name]
        for name, members in groups.items()
        for source in members
    }
