"""Perplexity under a language model, and what is read from it: head, middle and tail of the run itself.

`ScorePerplexity` runs where the model is (in the driver or a cluster's actors, never in pool workers), in batches of
texts of about one length. `PerplexityTiers` then cuts at percentiles of this run's own documents, for each language
apart: CCNet's idea (Wenzek et al. 2020) without its table of cut-offs for 48 languages from 2019. Percentiles come from
histograms of fixed size, so memory does not grow with the number of documents.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from data.clean.step import Phase
from data.document import Document, Drop, Dropped
from data.engine import Engine
from data.features import Features
from data.stage import Counts, map_documents, map_documents_with
from data.tables import read_documents

VERSION = 1
WINDOW = 1024  # documents that are sorted by length together
BINS = 4096  # of log perplexity
_MAX_LOG = math.log(1e9)  # nats a token at the end of the histogram
Tier = Literal["head", "middle", "tail"]


class Scorer(Protocol):
    """A language model that rates texts."""

    def score(self, texts: Sequence[str]) -> tuple[Sequence[float], Sequence[int]]:
        """(nats, tokens) of each text: its negative log-likelihood in all, and over how many tokens."""
        ...


class ScorerSpec(Protocol):
    """A frozen value in a config that makes a scorer when the stage runs."""

    def build(self) -> Scorer:
        """The scorer, loaded; ValueError in one line where something is missing."""
        ...


@dataclass(frozen=True, kw_only=True)
class ScorePerplexity:
    """Add scores["perplexity"], ["nats"] and ["tokens"] with a model.

    scorer: a spec with `build()`, or a scorer itself. batch_size: texts a call, of about one length.
    """

    scorer: ScorerSpec | Scorer
    batch_size: int = 16

    name: ClassVar[str] = "perplexity"
    version: ClassVar[int] = VERSION
    code_modules: ClassVar[tuple[str, ...]] = ("data.clean.perplexity",)
    libraries: ClassVar[tuple[str, ...]] = ("pyarrow",)

    def inputs_key(self) -> Any:
        """Which files the scorer reads, where it says so: a model trained anew at the same place scores anew."""
        files = getattr(self.scorer, "inputs_key", None)
        return files() if files else None

    def run(self, inputs: Sequence[Path], output: Path, engine: Engine) -> Counts:
        """As `Stage.run`; the model is built once a process that scores."""
        work = partial(score_documents, batch_size=self.batch_size)
        return map_documents_with(self._scorer, work, inputs, output, engine, label=self.name)

    def _scorer(self) -> Scorer:
        build = getattr(self.scorer, "build", None)
        return build() if build else self.scorer  # type: ignore[return-value]


def score_documents(documents: Iterable[Document], scorer: Scorer, *, batch_size: int) -> Iterator[Document]:
    """The documents in their order; the model sees them by length, so that batches need little padding."""
    window: list[Document] = []
    for document in documents:
        window.append(document)
        if len(window) == WINDOW:
            yield from _scored(window, scorer, batch_size)
            window = []
    yield from _scored(window, scorer, batch_size)


def _scored(window: list[Document], scorer: Scorer, batch_size: int) -> list[Document]:
    order = sorted(range(len(window)), key=lambda i: -len(window[i].text))
    scored: dict[int, Document] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        nats, tokens = scorer.score([window[i].text for i in batch])
        for i, nat, count in zip(batch, nats, tokens, strict=True):
            scored[i] = window[i].with_scores(
                nats=round(float(nat), 3), tokens=int(count), perplexity=perplexity(float(nat), int(count))
            )
    return [scored[i] for i in range(len(window))]


def perplexity(nats: float, tokens: int) -> float:
    """exp(nats a token), at most 1e9; that too where there are no tokens."""
    return round(math.exp(min(nats / tokens, _MAX_LOG)), 3) if tokens else math.exp(_MAX_LOG)


@dataclass(frozen=True, kw_only=True)
class PerplexityIs:
    """Drop documents outside a range of perplexity; the basic rule is at most 1000. Needs `ScorePerplexity`."""

    minimum: float = 0.0
    maximum: float = 1000.0

    name: ClassVar[str] = "perplexity_is"
    phase: ClassVar[Phase] = "decide"

    def __call__(self, document: Document, features: Features) -> Document | Drop:
        value = _needed(document)
        if value > self.maximum:
            return Drop("high_perplexity", value, self.maximum)
        return Drop("low_perplexity", value, self.minimum) if value < self.minimum else document


def _needed(document: Document) -> float:
    value = document.scores.get("perplexity")
    if value is None:
        raise ValueError(f"document {document.id} has no score 'perplexity'; put ScorePerplexity(...) before this")
    return float(value)


@dataclass(frozen=True, kw_only=True)
class PerplexityTiers:
    """Set scores["tier"] to head, middle or tail by the run's own percentiles, and keep some of them.

    head, middle: percentiles where these end (CCNet cuts at 30 and 60). keep: the tiers that go on; others are dropped
    with reason `perplexity_middle` or `perplexity_tail`, and the language's cut-off as the threshold.
    """

    head: float = 30.0
    middle: float = 60.0
    keep: tuple[Tier, ...] = ("head", "middle", "tail")

    name: ClassVar[str] = "tiers"
    version: ClassVar[int] = VERSION
    code_modules: ClassVar[tuple[str, ...]] = ("data.clean.perplexity",)
    libraries: ClassVar[tuple[str, ...]] = ("pyarrow",)

    def run(self, inputs: Sequence[Path], output: Path, engine: Engine) -> Counts:
        """As `Stage.run`: histograms of each language over all shards first, then tiers by their percentiles."""
        total: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(BINS, np.int64))
        for counts in engine.map_shards(_histograms, list(inputs), label="perplexity percentiles"):
            for language, histogram in counts.items():
                total[language] += np.array(histogram)
        cuts = {language: (_percentile(h, self.head), _percentile(h, self.middle)) for language, h in total.items()}
        return map_documents(partial(_tiered, cuts=cuts, keep=self.keep), inputs, output, engine, label=self.name)


def _language(document: Document) -> str:
    return str(document.scores.get("language", "und"))


def _bin(value: float) -> int:
    return min(BINS - 1, int(math.log(max(1.0, value)) / _MAX_LOG * BINS))


def _histograms(path: Path) -> dict[str, list[int]]:
    counts: dict[str, list[int]] = {}
    for document in read_documents(path):
        counts.setdefault(_language(document), [0] * BINS)[_bin(_needed(document))] += 1
    return counts


def _percentile(histogram: np.ndarray, percent: float) -> float:
    """The perplexity below which this share of the documents lies, to the width of a bin (0.5 %)."""
    reached = np.cumsum(histogram) >= histogram.sum() * percent / 100
    return round(math.exp((int(np.argmax(reached)) + 1) * _MAX_LOG / BINS), 4)


def _tiered(
    documents: Iterable[Document], *, cuts: Mapping[str, tuple[float, float]], keep: tuple[Tier, ...]
) -> Iterator[Document | Dropped]:
    for document in documents:
        value = _needed(document)
        head, middle = cuts[_language(document)]
        tier = "head" if value < head else "middle" if value < middle else "tail"
        document = document.with_scores(tier=tier)
        if tier in keep:
            yield document
        else:
            limit = head if "middle" not in keep else middle
            yield Dropped(document, PerplexityTiers.name, Drop(f"perplexity_{tier}", value, limit))
