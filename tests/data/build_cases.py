"""A small corpus and configs over it, for the tests of the build; importable by the pool's workers."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from data.build import DataConfig, build_dataset
from data.dedup.exact import ExactDedup
from data.document import Document, Drop, Dropped
from data.engine import Engine, LocalPool
from data.heldout import HeldOut
from data.stage import NOT_IN_KEY, Counts, map_documents
from data.tokenizer_config import TokenizerConfig

TEXT = """the sluice lets water through when gate and level agree so that boats may pass from one side of a river
to another without falling over stones and every keeper writes a line in his book"""
WORDS = TEXT.split()


@dataclass(frozen=True, kw_only=True)
class Invented:
    """Documents made up from their number, with an address in each; every seventh cannot be read."""

    name: str
    num_shards: int = 3
    documents_a_shard: int = 40
    pause: float = field(default=0.0, metadata=NOT_IN_KEY)

    version: ClassVar[int] = 1
    code_modules: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ()

    def shards(self) -> Sequence[int]:
        return list(range(self.num_shards))

    def inputs_key(self) -> Any:
        return "invented"

    def documents(self, shard: int) -> Iterator[Document | Dropped]:
        for index in range(shard * self.documents_a_shard, (shard + 1) * self.documents_a_shard):
            time.sleep(self.pause)
            number = index // 2 if index % 5 == 0 else index  # some texts occur twice
            digest = hashlib.sha256(f"{self.name}{number}".encode()).digest()
            text = " ".join(WORDS[byte % len(WORDS)] for byte in digest * 3) + f" keeper{number}@lock.example"
            document = Document(
                id=f"{self.name}:{index}", text=text, source=self.name, meta={"group": f"group{number % 20}"}
            )
            yield Dropped(document, "read", Drop("unreadable")) if index % 7 == 0 else document


@dataclass(frozen=True, kw_only=True)
class Shorten:
    """Drops what has fewer characters than `least`.

    killed: a file; the first worker that finds it missing makes it and is killed in the middle of its shard.
    """

    least: int = 475
    pause: float = field(default=0.0, metadata=NOT_IN_KEY)
    killed: Path | None = field(default=None, metadata=NOT_IN_KEY)

    name: ClassVar[str] = "shorten"
    version: ClassVar[int] = 1
    code_modules: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ()

    def __call__(self, documents: Iterator[Document]) -> Iterator[Document | Dropped]:
        for document in documents:
            time.sleep(self.pause)
            size = len(document.text)
            short = size < self.least
            yield Dropped(document, self.name, Drop("too_short", size, self.least)) if short else document
            if self.killed is not None and not self.killed.exists():
                self.killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)

    def run(self, inputs: Sequence[Path], output: Path, engine: Engine) -> Counts:
        return map_documents(self, inputs, output, engine, label=self.name)


@dataclass(frozen=True, kw_only=True)
class Lose(Shorten):
    """A stage with a fault: it forgets documents and says that it did not."""

    name: ClassVar[str] = "lose"

    def run(self, inputs: Sequence[Path], output: Path, engine: Engine) -> Counts:
        counts = super().run(inputs, output, engine)
        return Counts(read=counts.read - 2, kept=counts.kept - 2, dropped=counts.dropped)


def make_config(path: Path, *, workers: int = 1, pause: float = 0.0, **changes: Any) -> DataConfig:
    """Two sources, four stages, a tokenizer: a second or two on one core when pause is 0."""
    settings: dict[str, Any] = {
        "path": str(path),
        "sources": (Invented(name="alpha", pause=pause), Invented(name="beta", num_shards=2, pause=pause)),
        "stages": (Shorten(pause=pause), ExactDedup(), HeldOut(fraction=0.2)),
        "tokenizer": TokenizerConfig(vocab_size=400, sample_bytes=20_000),
        "engine": LocalPool(workers=workers),
        "shard_bytes": 6_000,
    }
    return DataConfig(**{**settings, **changes})


def file_hashes(dataset: Path) -> dict[str, str]:
    """{path: hash} of every file of a dataset except the log."""
    return {
        path.relative_to(dataset).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(dataset.rglob("*"))
        if path.is_file() and path.name != "build.log"
    }


if __name__ == "__main__":
    # The process that the kill test kills. Through the module's real name, so that workers find the classes.
    from tests.data import build_cases

    build_dataset(build_cases.make_config(Path(sys.argv[1]), workers=int(sys.argv[2]), pause=float(sys.argv[3])))
