"""Bands: which pairs of documents are worth a comparison.

A signature is cut into bands of `rows` values; two documents are a candidate pair when some band is equal, which for
Jaccard similarity s happens with probability 1 - (1 - s**rows)**bands (Leskovec, Rajaraman, Ullman, section 3.4).
"""

from __future__ import annotations

from functools import cache

import numpy as np

from data.dedup.shingles import mix64

VERSION = 1

_NODES = 64  # Gauss-Legendre nodes a side: exact for the polynomials of degree < 128 that 128 permutations give


def candidate_probability(similarity: np.ndarray | float, bands: int, rows: int) -> np.ndarray:
    """The chance that a pair of this Jaccard similarity becomes a candidate."""
    return 1.0 - (1.0 - np.asarray(similarity, float) ** rows) ** bands


@cache
def choose_bands(threshold: float, num_perm: int, false_negative_weight: float) -> tuple[int, int]:
    """(bands, rows) as `datasketch.MinHashLSH(threshold, num_perm, weights=(1 - w, w))` chooses them.

    They minimise (1 - w) * area below the threshold under the curve + w * area above the threshold over the curve.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must be between 0 and 1 (both left out), got {threshold}")
    if not 0 < false_negative_weight < 1:
        raise ValueError(f"false_negative_weight must be between 0 and 1, got {false_negative_weight}")
    nodes, weights = np.polynomial.legendre.leggauss(max(_NODES, num_perm // 2 + 1))
    below, above = threshold * (nodes + 1) / 2, threshold + (1 - threshold) * (nodes + 1) / 2
    best, chosen = np.inf, (0, 0)
    for bands in range(1, num_perm + 1):
        for rows in range(1, num_perm // bands + 1):
            wrong = threshold / 2 * (weights @ candidate_probability(below, bands, rows))
            missed = (1 - threshold) / 2 * (weights @ (1 - candidate_probability(above, bands, rows)))
            error = (1 - false_negative_weight) * wrong + false_negative_weight * missed
            if error < best - 1e-12:  # ties within rounding go to fewer bands, as in datasketch
                best, chosen = error, (bands, rows)
    if chosen[0] < 2:
        raise ValueError(
            f"threshold {threshold} with {num_perm} permutations gives a single band: take more permutations or a "
            "lower threshold"
        )
    return chosen


def band_keys(signatures: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """A 64-bit key of each band: uint64 [documents, bands] from [documents, num_perm]; equal bands, equal keys."""
    cut = signatures[:, : bands * rows].reshape(len(signatures), bands, rows)
    keys = np.broadcast_to(np.arange(1, bands + 1, dtype=np.uint64), (len(signatures), bands)).copy()
    for row in range(rows):
        keys *= np.uint64(0x9E3779B97F4A7C15)
        keys += cut[:, :, row]
        mix64(keys)
    return keys
