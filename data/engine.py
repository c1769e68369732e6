"""Engines run a function over shards: a local process pool here, a cluster in a module of its own.

Output bytes never depend on the engine or on the number of workers: a shard's function writes its own files and
returns a small JSON-able result, and results come back in shard order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

S = TypeVar("S")
R = TypeVar("R")


class Engine(Protocol):
    """Where stages run."""

    def map_shards(self, fn: Callable[[S], R], shards: Sequence[S], *, label: str) -> list[R]:
        """fn(shard) for every shard, results in shard order; a barrier. fn and shards must pickle (spawned workers)."""
        ...
