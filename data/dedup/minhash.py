"""MinHash signatures on arrays, in the hash families of `datasketch` 2.0 (equal values for equal input hashes).

Signature k of a set is min over its hashes h of a_k * mix(h) + b_k, in unsigned 32- or 64-bit arithmetic that wraps
(a_k odd, so each permutation is a bijection; mix is MurmurHash3's finaliser). The share of equal places in two
signatures estimates the Jaccard similarity of the sets (Broder 1997).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import DTypeLike

from data.dedup.shingles import HashedShingles, mix64

VERSION = 1

_BLOCK = 1 << 16  # hashes permuted at once: 256 KiB of 32-bit values, which the second-level cache holds


@dataclass(frozen=True, kw_only=True)
class MinHasher:
    """Signatures of `num_perm` values.

    bits: 32 (uint32 values, the default of datasketch 2.0) or 64 (for sets of some 100 million shingles).
    seed: chooses the permutations, as in datasketch.
    """

    num_perm: int = 128
    seed: int = 1
    bits: Literal[32, 64] = 32

    def __post_init__(self) -> None:
        if self.num_perm < 2:
            raise ValueError(f"MinHasher: num_perm must be at least 2, got {self.num_perm}")
        if self.bits not in (32, 64):
            raise ValueError(f"MinHasher: bits must be 32 or 64, got {self.bits}")

    @property
    def dtype(self) -> np.dtype:
        """The type of signature values."""
        return np.dtype(np.uint32 if self.bits == 32 else np.uint64)

    @cached_property
    def permutations(self) -> tuple[np.ndarray, np.ndarray]:
        """(a, b), each [num_perm]: drawn in the order in which datasketch draws them."""
        random, kind = np.random.RandomState(self.seed), self.dtype.type
        factors = random.randint(0, 1 << (self.bits - 1), self.num_perm, dtype=kind) * kind(2) + kind(1)
        return factors, random.randint(0, 1 << self.bits, self.num_perm, dtype=kind)

    def signatures(self, shingles: HashedShingles) -> np.ndarray:
        """[documents, num_perm]; a document without shingles has the largest value everywhere."""
        return self.of_hashes(narrow(shingles.values, self.dtype), shingles.starts)

    def of_hashes(self, hashes: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Signatures of the sets hashes[starts[i] : starts[i + 1]]; hashes are of `dtype` and not yet mixed."""
        out = np.full((len(starts) - 1, self.num_perm), np.iinfo(self.dtype).max, self.dtype)
        mixed = mix32(hashes.copy()) if self.bits == 32 else mix64(hashes.copy())
        filled = np.flatnonzero(np.diff(starts))
        first = 0
        while first < len(filled):
            begin = starts[filled[first]]
            last = max(int(np.searchsorted(starts[filled], begin + _BLOCK)) - 1, first + 1)
            rows = filled[first:last]
            stop = starts[rows[-1] + 1]
            out[rows] = self._block(mixed[begin:stop], starts[rows] - begin)
            first = last
        return out

    def _block(self, mixed: np.ndarray, starts: np.ndarray) -> np.ndarray:
        factors, shifts = self.permutations
        values = np.empty((self.num_perm, len(starts)), self.dtype)
        for low in range(0, len(mixed), _BLOCK):  # more than one turn only for a document longer than a block
            part = mixed[low : low + _BLOCK]
            scratch = np.empty_like(part)
            least = values if low == 0 else np.empty_like(values)
            for k in range(self.num_perm):
                np.multiply(part, factors[k], out=scratch)
                scratch += shifts[k]
                np.minimum.reduceat(scratch, starts, out=least[k])
            if low:
                np.minimum(values, least, out=values)
        return values.T


def narrow(values: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """The upper bits of 64-bit hashes as hashes of `dtype` (for 64 bits: the hashes themselves)."""
    return values if np.dtype(dtype).itemsize == 8 else (values >> np.uint64(32)).astype(dtype)


def mix32(values: np.ndarray) -> np.ndarray:
    """MurmurHash3's 32-bit finaliser (Appleby 2011); uint32, in place."""
    values ^= values >> np.uint32(16)
    values *= np.uint32(0x85EBCA6B)
    values ^= values >> np.uint32(13)
    values *= np.uint32(0xC2B2AE35)
    values ^= values >> np.uint32(16)
    return values
