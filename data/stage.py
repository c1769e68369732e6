"""The one shape that every data stage has, so that a config composes them freely.

A stage is a frozen dataclass: its fields are its settings, `run` does the work.

    Read -> Clean -> ExactDedup -> NearDedup -> HeldOut -> Decontaminate        (each a value in `DataConfig.stages`)

`run(inputs, output, engine)` reads document shards (Parquet, see data.tables), writes whole shards into

    output/kept/NNNNN.parquet       documents that go on, in the order of the inputs
    output/dropped/NNNNN.parquet    documents removed here, each with step, reason, value, threshold, partner

and returns its `Counts`. `data.build` gives it a fresh folder, checks the books and renames the folder when it is whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from data.engine import Engine


@dataclass(frozen=True, slots=True)
class Counts:
    """The books of one stage or shard: kept + dropped = read + created."""

    read: int = 0
    created: int = 0
    kept: int = 0
    dropped: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.read + other.read,
            self.created + other.created,
            self.kept + other.kept,
            self.dropped + other.dropped,
        )

    @property
    def balanced(self) -> bool:
        """Whether every document that came in is accounted for."""
        return self.kept + self.dropped == self.read + self.created


class Stage(Protocol):
    """A frozen dataclass with settings as fields.

    name: how folders, reports and `data.explain` call it.
    version: raised by hand whenever the code of `code_modules` changes what is written (a test watches).
    code_modules: the modules whose code shapes its bytes.
    libraries: distributions whose version shapes its bytes; they enter the stage key.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    code_modules: ClassVar[tuple[str, ...]]
    libraries: ClassVar[tuple[str, ...]]

    def run(self, inputs: Sequence[Path], output: Path, engine: Engine) -> Counts:
        """Read the input shards, write output/kept and output/dropped, return the books."""
        ...
