"""The shape of a source: where raw documents come from.

A source is a frozen dataclass whose fields are its settings. `data.build` reads every shard of every source once, in
the pool's workers, into document shards; what a reader cannot make a document of, it yields as a `Dropped`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Protocol

from data.document import Document, Dropped


class Source(Protocol):
    """A stream of raw documents in shards.

    name: names the source in documents, recipes, mixture weights and reports; unique in a config.
    version, code_modules, libraries: as in `data.stage.Stage`.
    """

    version: ClassVar[int]
    code_modules: ClassVar[tuple[str, ...]]
    libraries: ClassVar[tuple[str, ...]]

    @property
    def name(self) -> str: ...

    def shards(self) -> Sequence[Any]:
        """What `documents` takes: small JSON values, in an order that depends on neither machine nor worker count."""
        ...

    def documents(self, shard: Any) -> Iterator[Document | Dropped]:
        """Stream the documents of one shard; one bad record is a `Dropped` and never the end."""
        ...

    def inputs_key(self) -> Any:
        """A JSON value that changes whenever the input does: sizes and hashes of files, versions of packages."""
        ...
