"""NearDedup against brute force, and the guarantees that hold on any number of workers."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy.sparse import csr_array

from data.dedup.bands import candidate_probability
from data.dedup.minhash import MinHasher
from data.dedup.near import NearDedup
from data.dedup.rows import SurvivorPolicy
from data.dedup.verdicts import Alarms
from data.document import Document
from data.engine import LocalPool
from tests.data.dedup.corpora import planted_copy, python_corpus
from tests.data.dedup.helpers import dropped, jaccard, kept, shingle_set, write_shards

ENGINE = LocalPool(workers=1)
LOOSE = Alarms(max_source_loss=1.0, max_cluster=None)


def similar_pairs(documents: list[Document], threshold: float) -> dict[tuple[int, int], float]:
    """All pairs (i < j) of Jaccard similarity >= threshold: every pair is counted, by a matrix of shingles."""
    numbers: dict = {}
    sets = [[numbers.setdefault(s, len(numbers)) for s in shingle_set(document.text)] for document in documents]
    sizes = np.array([len(found) for found in sets])
    starts = np.concatenate(([0], np.cumsum(sizes)))
    ones = np.ones(starts[-1], np.int32)
    matrix = csr_array((ones, np.concatenate(sets), starts), shape=(len(sets), len(numbers)))
    common = (matrix @ matrix.T).tocoo()
    values = common.data / (sizes[common.row] + sizes[common.col] - common.data)
    hits = (common.row < common.col) & (values >= threshold)
    return {(int(i), int(j)): float(v) for i, j, v in zip(common.row[hits], common.col[hits], values[hits])}


def test_verdicts_are_those_of_the_policy_order(tmp_path):
    """With bands that miss nothing, the verdicts are exactly the greedy ones over all verified pairs."""
    draw = random.Random(5)
    documents = []
    for family in range(40):
        base = [f"w{draw.randrange(3000)}" for _ in range(draw.randrange(30, 200))]
        for copy in range(6):
            base = planted_copy(base, draw.choice([0.7, 0.8, 0.9, 0.95]), draw)
            documents.append(
                Document(id=f"f{family}c{copy}", text=" ".join(base), source=draw.choice("abc"), scores={"q": copy % 3})
            )
    draw.shuffle(documents)
    policy = SurvivorPolicy(sources=("b",), score="q")
    stage = NearDedup(
        threshold=0.8,
        false_negative_weight=1 - 1e-9,
        minhash=MinHasher(num_perm=512),
        policy=policy,
        alarms=LOOSE,
    )
    stage.run(write_shards(tmp_path / "in", documents, shards=3), tmp_path / "out", ENGINE)

    def rank(document: Document) -> tuple:
        return document.source != "b", -document.scores["q"], -len(document.text), document.id

    survivors: list[Document] = []
    expected: dict[str, tuple[str, float]] = {}
    sets = {document.id: shingle_set(document.text) for document in documents}
    for document in sorted(documents, key=rank):
        values = [(jaccard(sets[document.id], sets[other.id]), -place) for place, other in enumerate(survivors)]
        best = max(values, default=(0.0, 0))
        if best[0] >= 0.8:
            expected[document.id] = survivors[-best[1]].id, best[0]
        else:
            survivors.append(document)
    found = {row.document.id: (row.drop.partner, row.drop.value) for row in dropped(tmp_path / "out")}
    assert found == expected and len(expected) > 50


def check_against_brute_force(tmp_path, seed: int, count: int, modeling_files: int) -> tuple[float, float, int]:
    """(recall - prediction, variance of it, pairs) of one sample; asserts that precision is 1."""
    documents = python_corpus(count, seed, modeling_files)
    stage = NearDedup(threshold=0.8, minhash=MinHasher(seed=seed + 1), alarms=LOOSE)
    out = tmp_path / f"out{seed}"
    stage.run(write_shards(tmp_path / f"in{seed}", documents), out, ENGINE)
    pairs = similar_pairs(documents, 0.8)
    place = {document.id: number for number, document in enumerate(documents)}
    gone = dropped(out)
    survivors = {document.id for document in kept(out)}
    for row in gone:
        one, other = sorted((place[row.document.id], place[row.drop.partner]))
        assert pairs[one, other] == pytest.approx(row.drop.value)  # precision 1.000: no removal without a similar pair
        assert row.drop.partner in survivors
    # recall over pairs of brute force: a pair is found when it is no longer whole; what can hide one is its band chance
    found = [not (documents[i].id in survivors and documents[j].id in survivors) for i, j in pairs]
    chance = candidate_probability(np.array(list(pairs.values())), *stage.bands())
    return float(np.mean(found) - chance.mean()), float((chance * (1 - chance)).sum() / len(chance) ** 2), len(pairs)


def test_natural_near_duplicates_against_brute_force(tmp_path):
    difference, variance, pairs = check_against_brute_force(tmp_path, seed=0, count=1000, modeling_files=40)
    assert pairs > 30
    assert difference >= -max(0.02, 2 * math.sqrt(variance))


@pytest.mark.slow
def test_natural_near_duplicates_against_brute_force_over_five_seeds(tmp_path):
    results = [check_against_brute_force(tmp_path, seed, count=3000, modeling_files=160) for seed in range(5)]
    mean = float(np.mean([difference for difference, _, _ in results]))
    error = math.sqrt(sum(variance for _, variance, _ in results)) / len(results)
    print("recall minus the curve's prediction, pairs:", [(round(d, 4), n) for d, _, n in results])
    assert mean >= -max(0.02, 2 * error)
