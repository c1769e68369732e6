"""Which document kills its process: found by a note of what was begun, dropped after some strikes.

A shard whose process has died once is done again with a note on disk before each document; the document that was
begun last when the process dies has a strike. With `STRIKES` of them it is left out, and the rest of the shard goes on.

A model sees documents in batches, where the last one that was begun says little. So a shard that has cost two processes
is probed: each document goes through the model by itself, with a note, before they all go in batches as before. When
nobody dies alone, and the batches kill all the same, no document is at fault, and the run stops with a sentence.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

STRIKES = 2  # deaths, each in the same document, after which it is dropped
BATCHES = 0  # the note of all documents together; single ones are counted from 1
KILLED = "killed_worker"  # the reason of a document that is left out
PROBE_AFTER = 2  # deaths of a shard with a model: one may be the machine's
MAX_DEATHS = 25  # of one shard: about twelve such documents; more is a fault of the machine or the code


class Strikes:
    """The notes of one shard."""

    def __init__(self, path: Path):
        self._watching = path.exists()
        lives = path.read_text(encoding="ascii").split("start\n") if self._watching else []
        last = [int(notes.split()[-1]) for notes in lives if notes]
        self._strikes = Counter(last)
        self._last = last[-1] if last else 1
        self.deaths = max(len(lives) - 1, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(self._file, b"start\n")

    def out(self, number: int) -> bool:
        """Whether the document at this place of the shard has killed too many processes."""
        return self._strikes[number] >= STRIKES

    def note(self, number: int) -> None:
        """The document at this place is begun."""
        if self._watching:
            os.write(self._file, b"%d\n" % number)

    def probe(self, documents: Iterable[T], alone: Callable[[T], object]) -> None:
        """Send documents through a model one by one, for the one that kills, where two processes have died in them.

        alone: does the work of one document; what comes out is not kept. Each goes by itself once in the shard's life;
        ValueError where that kills nobody, and all of them in batches kill all the same.
        """
        if self.deaths < PROBE_AFTER:
            return
        for number, document in enumerate(documents, 1):
            if self._unproven(number):
                self.note(number)
                alone(document)
        if self.out(BATCHES):
            raise ValueError(
                f"its process died {self.deaths} times; each document alone goes through the model, so the batches are "
                "too large for the memory: set a smaller batch_size, or give each model more"
            )
        self.note(BATCHES)

    def _unproven(self, number: int) -> bool:
        """Whether this document was not yet seen to go through the model by itself."""
        return self._last != BATCHES and number >= self._last and not self.out(number)

    def close(self) -> None:
        """End the notes."""
        os.close(self._file)


@contextmanager
def watched(path: Path) -> Iterator[Strikes]:
    """The notes of a shard, in a file that is removed when it ends in any way but the death of the process."""
    strikes = Strikes(path)
    try:
        yield strikes
    finally:
        strikes.close()
        path.unlink(missing_ok=True)
