"""NearIndex: near-duplicate lookup in memory, for a stream of documents in Python.

The semantics of `datasketch.MinHashLSH`: insert(key, text), query(text) -> keys. Unlike it, a query verifies what it
finds by the true Jaccard similarity (verify=False gives the unverified candidates).

    index = NearIndex(threshold=0.8, shingles=Shingles(size=1))
    for i, text in enumerate(texts):
        if not index.query(text):
            index.insert(f"doc_{i}", text)
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from data.dedup import index as index_files
from data.dedup.bands import band_keys
from data.dedup.minhash import MinHasher
from data.dedup.near import NearDedup
from data.dedup.rows import Rows, load_array
from data.dedup.shingles import HashedShingles, Shingles, hash_shingles, unique_sorted
from data.dedup.verify import jaccard


class NearIndex:
    """Shingle sets in memory (8 bytes a shingle) under their band keys.

    threshold, num_perm, seed, shingles, false_negative_weight: as in `NearDedup`.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.8,
        num_perm: int = 128,
        seed: int = 1,
        shingles: Shingles | None = None,
        false_negative_weight: float = 0.9,
    ) -> None:
        self._settings = NearDedup(
            threshold=threshold,
            minhash=MinHasher(num_perm=num_perm, seed=seed),
            shingles=shingles or Shingles(),
            false_negative_weight=false_negative_weight,
        )
        self._sets: dict[str, np.ndarray] = {}
        self._order: dict[str, int] = {}
        self._holders: list[defaultdict[int, list[str]]] = [defaultdict(list) for _ in range(self.bands[0])]

    @classmethod
    def load(cls, folder: Path, settings: NearDedup) -> NearIndex:
        """The index that a `NearDedup` stage with these settings saved. Raises ValueError as it does."""
        index = cls.__new__(cls)
        index._settings, index._sets, index._order = settings, {}, {}
        index._holders = [defaultdict(list) for _ in range(index.bands[0])]
        parts = index_files.open_index(folder, settings)
        for part in parts:
            offsets = load_array(part / "offsets.npy").tolist()
            rows = np.arange(len(offsets) - 1)
            hashes = np.asarray(load_array(part / "hashes.npy"))
            keys = band_keys(np.asarray(load_array(part / "signatures.npy")), *index.bands)
            names = Rows.of([part], [len(rows)]).ids(rows)
            for name, start, stop, bands in zip(names, offsets, offsets[1:], keys.tolist()):
                index._add(name, hashes[start:stop], bands)
        return index

    @property
    def bands(self) -> tuple[int, int]:
        """(bands, rows) that the threshold gave."""
        return self._settings.bands()

    def __len__(self) -> int:
        return len(self._sets)

    def __contains__(self, key: str) -> bool:
        return key in self._sets

    def insert(self, key: str, text: str) -> None:
        """Add a document. Raises ValueError for a key that is there already."""
        if key in self._sets:
            raise ValueError(f"key {key!r} is in the index already; give each document a key of its own")
        found, keys = self._hash(text)
        self._add(key, found, keys)

    def query(self, text: str, *, verify: bool = True) -> list[str]:
        """Keys of documents like this one, most similar first (then in order of insertion)."""
        return [key for key, _ in self.query_similarities(text, verify=verify)]

    def query_similarities(self, text: str, *, verify: bool = True) -> list[tuple[str, float]]:
        """(key, Jaccard similarity) of documents like this one, most similar first."""
        found, keys = self._hash(text)
        if not len(found):
            return []
        candidates = {key for holder, band in zip(self._holders, keys) for key in holder.get(band, ())}
        values = [(self._order[key], key, jaccard(found, self._sets[key])) for key in candidates]
        least = self._settings.threshold if verify else 0.0
        best = sorted((-value, order, key) for order, key, value in values if value >= least)
        return [(key, -value) for value, _, key in best]

    def _hash(self, text: str) -> tuple[np.ndarray, list[int]]:
        found: HashedShingles = unique_sorted(hash_shingles([text], self._settings.shingles))
        keys = band_keys(self._settings.minhash.signatures(found), *self.bands)
        return found.values, keys[0].tolist()

    def _add(self, key: str, found: np.ndarray, keys: list[int]) -> None:
        self._sets[key], self._order[key] = found, len(self._order)
        if len(found):
            for holder, band in zip(self._holders, keys):
                holder[band].append(key)
