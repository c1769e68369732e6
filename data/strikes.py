"""Which document kills its process: found by a note of what was begun, dropped after some strikes.

A shard whose process has died once is done again with a note on disk before each document; the document that was
begun last when the process dies has a strike. With `STRIKES` of them it is left out, and the rest of the shard goes on.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STRIKES = 2  # deaths, each in the same document, after which it is dropped
MAX_DEATHS = 25  # of one shard: about twelve such documents; more is a fault of the machine or the code


class Strikes:
    """The notes of one shard."""

    def __init__(self, path: Path):
        self._watching = path.exists()
        lives = path.read_text(encoding="ascii").split("start\n") if self._watching else []
        last = [notes.split()[-1] for notes in lives if notes]
        self._strikes = Counter(int(note) for note in last)
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
