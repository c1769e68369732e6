"""HeldOut: which documents are for training and which for evaluation, decided by a hash of what they belong to.

A document's side depends on its own group, the fraction and the seed, and on no other document: it stays the same when
the corpus grows. Everything of one group (a package, a book, a host) is on one side, in every source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import xxhash

from data.document import Document
from data.engine import Engine
from data.stage import Counts, map_documents
from data.tables import read_documents

VERSION = 1
TRAIN, HELDOUT = "train", "heldout"


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Sets meta["split"] to "train" or "heldout"; drops nothing.

    fraction: share of the groups that are held out, between 0 and 1.
    group: the meta key that names a document's group; a document without it is a group of its own.
    seed: another seed, another choice.

    Raises ValueError when not a single document would be held out, or none left for training.
    """

    fraction: float = 0.05
    group: str = "group"
    seed: int = 0

    name: ClassVar[str] = "heldout"
    version: ClassVar[int] = VERSION
    code_modules: ClassVar[tuple[str, ...]] = ("data.heldout",)
    libraries: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"HeldOut: fraction must lie between 0 and 1, got {self.fraction}")

    def split(self, document: Document) -> str:
        """The side of a document."""
        group = document.meta.get(self.group) or document.id
        value = xxhash.xxh3_64_intdigest(f"{self.seed}:{group}".encode())
        return HELDOUT if value < self.fraction * 2**64 else TRAIN

    def __call__(self, documents: Iterator[Document]) -> Iterator[Document]:
        """The documents, each with its side."""
        for document in documents:
            yield document.with_meta(split=self.split(document))

    def run(self, inputs: Sequence[Path], output: Path, engine: Engine) -> Counts:
        """As `Stage.run`; ValueError where all documents came to one side."""
        counts = map_documents(self, inputs, output, engine, label=self.name)
        sides = set()
        for path in inputs:
            for document in read_documents(path):
                sides.add(self.split(document))
                if len(sides) == 2:
                    return counts
        if sides:
            raise ValueError(
                f"heldout: all {counts.read} documents are {sides.pop()}: there are too few groups (meta "
                f"{self.group!r}) for fraction={self.fraction}; set another fraction, or another seed than {self.seed}"
            )
        return counts
