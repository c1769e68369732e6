"""Batched scores equal single ones in the documents' order; tiers are the run's own percentiles, for each language."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from data.clean.perplexity import PerplexityTiers, ScorePerplexity, perplexity, score_documents
from data.document import Document
from data.engine import LocalPool
from data.tables import read_documents, read_dropped, write_documents


class ByLength:
    """A scorer whose perplexity of a text is its length; it notes what it was given."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def score(self, texts: Sequence[str]) -> tuple[list[float], list[int]]:
        self.batches.append([len(text) for text in texts])
        return [3 * math.log(len(text)) for text in texts], [3 for _ in texts]


@dataclass(frozen=True)
class Spec:
    def build(self) -> ByLength:
        return ByLength()


def documents(count: int) -> list[Document]:
    return [
        Document(id=str(i), text="x" * (1 + i * 37 % 101), source="s", scores={"language": "en" if i % 3 else "de"})
        for i in range(count)
    ]


def test_order_is_kept_and_batches_hold_texts_of_about_one_length() -> None:
    scorer = ByLength()
    scored = list(score_documents(documents(100), scorer, batch_size=10))
    assert [document.id for document in scored] == [str(i) for i in range(100)]
    assert all(math.isclose(d.scores["perplexity"], len(d.text), rel_tol=1e-3) for d in scored)
    assert max(max(batch) - min(batch) for batch in scorer.batches) <= 11


def test_stage_then_tiers(tmp_path) -> None:
    write_documents(tmp_path / "a.parquet", documents(101))
    counts = ScorePerplexity(scorer=Spec()).run([tmp_path / "a.parquet"], tmp_path / "scored", LocalPool(workers=1))
    assert (counts.read, counts.kept, counts.balanced) == (101, 101, True)
    kept = sorted((tmp_path / "scored" / "kept").glob("*.parquet"))
    counts = PerplexityTiers(keep=("head", "middle")).run(kept, tmp_path / "tiers", LocalPool(workers=1))
    assert counts.balanced
    passed = [d for path in (tmp_path / "tiers" / "kept").glob("*.parquet") for d in read_documents(path)]
    fallen = [d for path in (tmp_path / "tiers" / "dropped").glob("*.parquet") for d in read_dropped(path)]
    for language, total in Counter(d.scores["language"] for d in documents(101)).items():
        tiers = Counter(d.scores["tier"] for d in passed if d.scores["language"] == language)
        assert abs(tiers["head"] - 0.3 * total) <= 1.5
        assert abs(tiers["head"] + tiers["middle"] - 0.6 * total) <= 1.5
    assert {row.drop.reason for row in fallen} == {"perplexity_tail"}
    assert all(row.drop.value >= row.drop.threshold for row in fallen)


def test_middle_can_be_dropped_too(tmp_path) -> None:
    write_documents(tmp_path / "a.parquet", [d.with_scores(perplexity=float(len(d.text))) for d in documents(50)])
    PerplexityTiers(keep=("head",)).run([tmp_path / "a.parquet"], tmp_path / "tiers", LocalPool(workers=1))
    fallen = [d for path in (tmp_path / "tiers" / "dropped").glob("*.parquet") for d in read_dropped(path)]
    assert {row.drop.reason for row in fallen} == {"perplexity_middle", "perplexity_tail"}


def test_no_tokens_is_the_largest_perplexity() -> None:
    assert perplexity(0.0, 0) == pytest.approx(1e9)
    assert perplexity(1e9, 1) == pytest.approx(1e9)
