"""Bands: which pairs of documents are worth a comparison.

A signature is cut into bands of `rows` values; two documents are a candidate pair when some band is equal, which for
Jaccard similarity s happens with probability 1 - (1 - s**rows)**bands (Leskovec, Rajaraman, Ullman, section 3.4).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from datasketch import MinHashLSH

from data.dedup.shingles import mix64

VERSION = 1


def candidate_probability(similarity: np.ndarray | float, bands: int, rows: int) -> np.ndarray:
    """The chance that a pair of this Jaccard similarity becomes a candidate."""
    return 1.0 - (1.0 - np.asarray(similarity, float) ** rows) ** bands


@cache
def choose_bands(threshold: float, num_perm: int, false_negative_weight: float) -> tuple[int, int]:
    """(bands, rows) as `datasketch` chooses them with `weights=(1 - w, w)`.

    They minimise (1 - w) * area below the threshold under the curve + w * area above the threshold over the curve.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must be between 0 and 1 (both left out), got {threshold}")
    if not 0 < false_negative_weight < 1:
        raise ValueError(f"false_negative_weight must be between 0 and 1, got {false_negative_weight}")
    weights = (1 - false_negative_weight, false_negative_weight)
    try:
        index = MinHashLSH(threshold=threshold, num_perm=num_perm, weights=weights)
    except ValueError as error:  # datasketch refuses what gives a single band
        raise ValueError(
            f"threshold {threshold} with {num_perm} permutations gives a single band: take more permutations or a "
            "lower threshold"
        ) from error
    return index.b, index.r


def band_keys(signatures: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """A 64-bit key of each band: uint64 [documents, bands] from [documents, num_perm]; equal bands, equal keys."""
    cut = signatures[:, : bands * rows].reshape(len(signatures), bands, rows)
    keys = np.broadcast_to(np.arange(1, bands + 1, dtype=np.uint64), (len(signatures), bands)).copy()
    for row in range(rows):
        keys *= np.uint64(0x9E3779B97F4A7C15)
        keys += cut[:, :, row]
        mix64(keys)
    return keys
