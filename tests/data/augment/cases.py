"""A small corpus of prose with names and numbers, and models that are no models, for the tests of augmentation."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import xxhash

from data.augment.masked import Masked
from data.augment.paraphrase import Paraphrase
from data.augment.reorder import Reorder
from data.augment.stage import Augment
from data.build import DataConfig, build_dataset
from data.clean.language import Language
from data.document import Document, Dropped
from data.engine import LocalPool
from data.heldout import HeldOut
from data.stage import NOT_IN_KEY

SENTENCES = (
    "The keeper of the lock opened the gate before the sun had risen over the hills.",
    "In {year} the council of {town} bought a new boat for the crossing.",
    "Nobody remembered why the old bridge had been painted red.",
    "Every morning {name} counted the barrels and wrote the number into a book.",
    "The water rose by {number} centimetres while the children were asleep.",
    "Some said that the river had its own ideas about where to go.",
    "A letter from {town} arrived late, and its ink had run in the rain.",
    "The miller kept his promise and sent flour to both villages.",
    "When the snow melted, {name} walked along the bank to look for damage.",
    "They built the second wall out of stones from the quarry near {town}.",
)
TOWNS = ("Arden", "Belford", "Carrick", "Dunmore", "Elstow")
PEOPLE = ("Maria", "Tobias", "Ingrid", "Samuel", "Leonora")


def prose(number: int) -> str:
    """Two paragraphs of eight sentences; every text another."""
    parts = []
    for paragraph in range(2):
        drawn = xxhash.xxh3_128_digest(f"{number}/{paragraph}".encode())
        order = sorted(range(len(SENTENCES)), key=lambda i: drawn[i])[:8]
        values = {
            "year": 1700 + drawn[11] + number,
            "town": TOWNS[drawn[12] % 5],
            "name": PEOPLE[drawn[13] % 5],
            "number": 1 + drawn[14],
        }
        parts.append(" ".join(SENTENCES[i].format(**values) for i in order))
    return "\n\n".join(parts)


@dataclass(frozen=True, kw_only=True)
class Stories:
    """Invented documents, a few to a shard."""

    name: str = "stories"
    num_shards: int = 3
    documents_a_shard: int = 12

    version: ClassVar[int] = 1
    code_modules: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ()

    def shards(self) -> Sequence[int]:
        return list(range(self.num_shards))

    def inputs_key(self) -> Any:
        return "stories"

    def documents(self, shard: int) -> Iterator[Document | Dropped]:
        for number in range(shard * self.documents_a_shard, (shard + 1) * self.documents_a_shard):
            text = "" if number % 17 == 5 else prose(number)
            meta = {"group": f"group{number}", "title": f"Story {number}"}
            yield Document(id=f"{self.name}:{number}", text=text, source=self.name, meta=meta)


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Given texts as documents."""

    texts: tuple[str, ...]
    name: str = "texts"

    version: ClassVar[int] = 1
    code_modules: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ()

    def shards(self) -> Sequence[int]:
        return [0]

    def inputs_key(self) -> Any:
        return xxhash.xxh3_64_hexdigest("".join(self.texts).encode())

    def documents(self, shard: int) -> Iterator[Document | Dropped]:
        for number, text in enumerate(self.texts):
            yield Document(id=f"{self.name}:{number}", text=text, source=self.name, meta={"group": f"group{number}"})


def news_paragraphs(real_data: Path, number: int, *, shortest: int = 250, longest: int = 700) -> tuple[str, ...]:
    """Paragraphs of real English articles, one an article first, then the next of each."""
    articles = json.loads((real_data / "html" / "ground-truth.json").read_text(encoding="utf-8"))
    pages = [str(page.get("articleBody", "")) for _, page in sorted(articles.items())]
    found: list[list[str]] = []
    for page in pages:
        good = [part.strip() for part in page.split("\n") if shortest <= len(part.strip()) <= longest]
        found.append([part for part in good if Language().detect(part)[0] == "en"])
    ordered = [parts[place] for place in range(40) for parts in found if place < len(parts)]
    return tuple(dict.fromkeys(ordered))[:number]


@dataclass(frozen=True, kw_only=True)
class Shouting:
    """A generator that is no model: the same sentences, in another order and other words. pause: seconds a prompt."""

    pause: float = field(default=0.0, metadata=NOT_IN_KEY)

    def build(self) -> Shouting:
        return self

    def generate(self, prompts: Sequence[str]) -> list[str]:
        out = []
        for prompt in prompts:
            time.sleep(self.pause)
            text = prompt.split("\n\n", 1)[1]
            out.append(
                "Here is the rewritten text:\n\n" + text.replace(" the ", " that ").replace(" and ", " as well as ")
            )
        return out


@dataclass(frozen=True)
class Backwards:
    """A filler that is no model: every masked word backwards, and nothing for words with an e."""

    def fill(self, masked: Sequence[Masked]) -> list[list[str | None]]:
        return [[None if "e" in item.text[a:b] else item.text[a:b][::-1] for a, b in item.spans] for item in masked]


def make_config(path: Path, *, workers: int = 1, pause: float = 0.0, **changes: Any) -> DataConfig:
    """Stories, held out by a fifth, reordered, then paraphrased."""
    settings: dict[str, Any] = {
        "path": str(path),
        "sources": (Stories(),),
        "stages": (
            HeldOut(fraction=0.2),
            Augment(technique=Reorder(), factor=2.0, chunk=4),
            Augment(technique=Paraphrase(generator=Shouting(pause=pause)), factor=1.5, chunk=4),
        ),
        "tokenizer": None,
        "engine": LocalPool(workers=workers),
        "shard_bytes": 6_000,
    }
    return DataConfig(**{**settings, **changes})


if __name__ == "__main__":
    # the process that the kill test kills
    from tests.data.augment import cases

    signal.signal(signal.SIGTERM, lambda *_: os._exit(1))
    build_dataset(cases.make_config(Path(sys.argv[1]), workers=int(sys.argv[2]), pause=float(sys.argv[3])))
