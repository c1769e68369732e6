"""Which documents are augmented how often, and which of the copies stay: decisions that need the whole corpus.

Everything is decided by hashes of (document id, technique, copy number, seed), so neither order nor workers matter.
Arrays of a few bytes a document are all that is held in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from data.augment.technique import derive
from data.document import Document
from data.heldout import TRAIN
from data.tables import atomic_path, read_documents

VERSION = 1
BYTES_A_TOKEN = 4.0  # UTF-8 bytes a token: what English comes to with vocabularies of 32,000 pieces and more
LINEAGE = "augmented"  # the meta key of a copy


@dataclass(frozen=True, kw_only=True)
class Dose:
    """How many copies the documents of each source get. factor 2.0: each document and one copy (see `Augment`)."""

    technique: str
    seed: int
    factor: float
    factors: tuple[tuple[str, float], ...]

    def copies(self, document: Document) -> int:
        """Copies of one document: the whole part of factor - 1, and one more for its fraction of the documents."""
        if document.meta.get("split") is None:
            raise ValueError(
                f"augment: document {document.id} is neither train nor held out; put HeldOut(...) before Augment(...)"
            )
        if document.meta["split"] != TRAIN or LINEAGE in document.meta:
            return 0
        wanted = dict(self.factors).get(document.source, self.factor) - 1.0
        drawn = derive(self.seed, self.technique, "fraction", document.id) / 2**64
        return int(wanted) + (drawn < wanted - int(wanted))

    def seed_of(self, document: Document, copy: int) -> int:
        """The seed of one copy; also its place in the order in which the token budget is spent."""
        return derive(self.seed, self.technique, copy, document.id)


def tokens_of(text: str) -> int:
    """About how many tokens a text has."""
    return round(len(text.encode("utf-8", "replace")) / BYTES_A_TOKEN)


def content_key(text: str) -> int:
    """Equal for texts that differ in case, white space and nothing else."""
    return xxhash.xxh3_64_intdigest(" ".join(text.casefold().split()).encode("utf-8", "replace"))


def survey_shard(task: tuple[Path, int], *, dose: Dose, folder: Path) -> tuple[int, int]:
    """Note the content keys of a shard's documents and the attempts it asks for; (attempts, tokens)."""
    path, index = task
    keys: list[int] = []
    attempts: list[tuple[int, int]] = []
    for document in read_documents(path):
        keys.append(content_key(document.text))
        attempts += [(dose.seed_of(document, copy), tokens_of(document.text)) for copy in range(dose.copies(document))]
    save_arrays(folder / f"{index:05d}.npz", keys=uint64(keys), attempts=uint64(attempts).reshape(-1, 2))
    return len(attempts), sum(tokens for _, tokens in attempts)


def uint64(values: Sequence) -> np.ndarray:
    """The values as unsigned 64-bit numbers, for empty lists too."""
    return np.array(values, dtype=np.uint64)


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write some arrays under a temporary name and rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_arrays(path: Path) -> Mapping[str, np.ndarray]:
    """What `save_arrays` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def first_too_many(order: np.ndarray, tokens: np.ndarray, budget: int | None) -> int:
    """The seed from which on attempts are beyond the budget, spent in the order of the seeds; 2**64 for none."""
    if budget is None or not len(order):
        return 2**64
    ranks = np.argsort(order, kind="stable")
    spent = np.cumsum(tokens[ranks])
    beyond = int(np.searchsorted(spent, np.uint64(budget), side="right"))
    return 2**64 if beyond == len(order) else int(order[ranks[beyond]])


def verdicts(
    known: np.ndarray, keys: np.ndarray, order: np.ndarray, tokens: np.ndarray, budget: int | None
) -> np.ndarray:
    """For each copy that passed the gates: 0 stays, 1 repeats a document or an earlier copy, 2 is beyond the budget.

    known: sorted content keys of all documents that came in, held-out ones too. keys, order, tokens: of the copies, in
    the order of shards. Earlier means a lower seed, so the answer does not depend on how documents lie in shards.
    """
    out = np.zeros(len(keys), np.uint8)
    if not len(keys):
        return out
    places = np.minimum(np.searchsorted(known, keys), max(0, len(known) - 1))
    out[known[places] == keys] = 1
    ranks = np.lexsort((order, keys))
    repeats = np.zeros(len(keys), bool)
    repeats[ranks[1:]] = keys[ranks[1:]] == keys[ranks[:-1]]
    out[repeats] = 1
    left = np.flatnonzero(out == 0)
    limit = first_too_many(order[left], tokens[left], budget)
    out[left[~below(order[left], limit)]] = 2
    return out


def below(order: np.ndarray, limit: int) -> np.ndarray:
    """Which seeds are below a limit that may be 2**64."""
    return np.ones(len(order), bool) if limit >= 2**64 else order < np.uint64(limit)
