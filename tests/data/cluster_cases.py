"""Corpora whose bytes a cluster must write as one machine does; importable by workers without JAX."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from data.build import DataConfig, build_dataset
from data.clean.recipes import code, prose
from data.clean.stage import cleaning
from data.clean.step import Recipe
from data.dedup.near import NearDedup
from data.document import Document
from data.engine_ray import Ray
from data.heldout import HeldOut
from data.tables import write_documents
from tests.bench.dedup import make_documents
from tests.data.build_cases import Invented, Shorten, make_config

ROOT = Path(__file__).resolve().parents[2]
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 << 20}  # bytes
FIVE = tuple(Invented(name=f"source{number}", num_shards=2, pause=0.004) for number in range(5))


@dataclass(frozen=True, kw_only=True)
class Planted:
    """The corpus of the dedup bench: texts, and copies of them that were edited."""

    name: str = "planted"

    version: ClassVar[int] = 1
    code_modules: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ()

    def shards(self) -> Sequence[int]:
        return [0, 1, 2]

    def inputs_key(self) -> Any:
        return "planted"

    def documents(self, shard: int) -> Iterator[Document]:
        sentences = [
            f"sentence {n} says that {n * n} boats and {n % 7} keepers passed the gate." for n in range(20_000)
        ]
        for document in make_documents(sentences, 80 * shard, 80, 0.5):
            yield replace(document, id=f"{self.name}:{document.id}", source=self.name)


def five_sources(path: Path, **changes: Any) -> DataConfig:
    """Five sources, with components of duplicates found in rounds."""
    stages = (Shorten(pause=0.004), NearDedup(label_in_rounds_above=0), HeldOut(fraction=0.2))
    return make_config(path, **{"sources": FIVE, "stages": stages, **changes})


def small_quickstart(path: Path, **changes: Any) -> DataConfig:
    """The quickstart's recipe on a part of its corpus, beside the corpus of the dedup bench."""
    from configs import quickstart

    whole = quickstart.get_data()
    part = {"packages": ("tokenizers",), "standard_library": False, "max_bytes": 200_000, "shard_bytes": 70_000}
    sources = (*(replace(source, **part) for source in whole.sources), Planted())  # type: ignore[type-var]
    recipes = (("prose", prose()), ("code", code()), ("planted", Recipe(name="none", steps=())))
    stages = (*cleaning(recipes=recipes), *whole.stages[-4:])
    tokenizer = replace(whole.tokenizer, vocab_size=400, sample_bytes=50_000)  # type: ignore[type-var]
    settings = {"sources": sources, "stages": stages, "tokenizer": tokenizer, "shard_bytes": 40_000}
    return replace(whole, path=str(path), **settings, **changes)


def engine(cluster: Any) -> Ray:
    """The engine whose workers import this repository from where it lies."""
    return Ray(address=cluster.address, ship_code=False)


def start_driver(cluster: Any, path: Path) -> subprocess.Popen:
    """A build of the five sources in a process of its own."""
    code = f"from tests.data.cluster_cases import drive; drive({cluster.address!r}, {str(path)!r})"
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)


def drive(address: str, path: str) -> None:
    """What that process does."""
    build_dataset(five_sources(Path(path), engine=Ray(address=address, ship_code=False)))


def shards_of(folder: Path, texts: Sequence[Sequence[str]]) -> list[Path]:
    """A shard for each list of texts; document i of shard s is s:S-I."""
    paths = []
    for shard, part in enumerate(texts):
        paths.append(folder / f"{shard}.parquet")
        write_documents(
            paths[-1], [Document(id=f"s:{shard}-{i}", text=text, source="s") for i, text in enumerate(part)]
        )
    return paths
