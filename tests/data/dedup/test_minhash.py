"""Parity with datasketch: permutations, signatures, bands and verdicts."""

from __future__ import annotations

from itertools import pairwise

import datasketch
import numpy as np
import pytest
from datasketch.lsh import _optimal_param

from data.dedup.bands import band_keys, candidate_probability, choose_bands
from data.dedup.minhash import MinHasher, narrow
from data.dedup.shingles import HashedShingles, Shingles, hash_shingles, unique_sorted


@pytest.mark.parametrize("bits", [32, 64])
def test_signatures_equal_datasketch_for_the_same_hashes(bits):
    hasher = MinHasher(num_perm=64, seed=7, bits=bits)
    random = np.random.default_rng(0)
    sizes = [3, 0, 170, 70_000, 1, 40_000, 0]  # a set longer than a block, empty sets, sets that share a block
    starts = np.concatenate(([0], np.cumsum(sizes)))
    hashes = random.integers(0, 2**bits, starts[-1], dtype=np.uint64).astype(hasher.dtype)
    ours = hasher.of_hashes(hashes, starts)
    for number, (start, stop) in enumerate(pairwise(starts)):
        theirs = datasketch.MinHash(64, seed=7, scheme=f"affine{bits}", hashfunc=int)
        theirs.update_batch(hashes[start:stop].tolist())
        np.testing.assert_array_equal(ours[number], theirs.hashvalues)


@pytest.mark.parametrize("num_perm", [16, 64, 128])
@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
def test_bands_are_those_of_datasketch(num_perm, weight):
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9):
        theirs = _optimal_param(threshold, num_perm, 1 - weight, weight)
        if theirs[0] < 2:
            with pytest.raises(ValueError, match="single band"):
                choose_bands(threshold, num_perm, weight)
        else:
            assert choose_bands(threshold, num_perm, weight) == theirs


def test_candidates_are_those_of_a_datasketch_index():
    random = np.random.default_rng(1)
    words = [f"w{n}" for n in range(400)]
    texts = []
    for _ in range(40):
        base = random.choice(words, 60).tolist()
        for _ in range(3):
            texts.append(" ".join(base))
            base[random.integers(0, 60)] = "changed"
    found = unique_sorted(hash_shingles(texts, Shingles(size=2)))
    hasher = MinHasher()
    signatures = hasher.signatures(found)
    bands, rows = choose_bands(0.7, 128, 0.5)
    keys = band_keys(signatures, bands, rows)
    index = datasketch.MinHashLSH(threshold=0.7, num_perm=128)
    assert (index.b, index.r) == (bands, rows)
    sketches = [_sketch(hasher, found, number) for number in range(len(texts))]
    for number, sketch in enumerate(sketches):
        index.insert(number, sketch)
    for number, sketch in enumerate(sketches):
        assert sorted(index.query(sketch)) == np.flatnonzero((keys == keys[number]).any(axis=1)).tolist()


def _sketch(hasher: MinHasher, found: HashedShingles, number: int) -> datasketch.MinHash:
    values = narrow(found.values[found.starts[number] : found.starts[number + 1]], hasher.dtype)
    sketch = datasketch.MinHash(hasher.num_perm, seed=hasher.seed, hashfunc=int)
    sketch.update_batch(values.tolist())
    return sketch


def test_share_of_equal_values_estimates_the_jaccard_similarity():
    random = np.random.default_rng(2)
    hasher = MinHasher()
    for similarity in (0.2, 0.5, 0.8, 0.95):
        estimates = []
        for _ in range(100):
            common = round(400 * similarity)
            values = random.integers(0, 2**64, 400, dtype=np.uint64)
            both, rest = values[:common], values[common:]
            sides = [np.concatenate((both, half)) for half in np.array_split(rest, 2)]
            pair = HashedShingles(np.concatenate(sides), np.array([0, len(sides[0]), len(sides[0]) + len(sides[1])]))
            one, other = hasher.signatures(pair)
            estimates.append(np.mean(one == other))
        error = np.sqrt(similarity * (1 - similarity) / 128 / 100)
        assert abs(np.mean(estimates) - similarity) < 4 * error + 0.002


def test_the_curve_is_a_probability():
    values = candidate_probability(np.linspace(0, 1, 11), 14, 9)
    assert values[0] == 0 and values[-1] == 1 and (np.diff(values) >= 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_perm": 1}, "num_perm must be at least 2"),
        ({"bits": 16}, "bits must be 32 or 64"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MinHasher(**arguments)
    with pytest.raises(ValueError, match="threshold must be between"):
        choose_bands(1.0, 128, 0.5)
