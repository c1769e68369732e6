"""A small corpus of prose with names and numbers, and models that are no models, for the tests of augmentation."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import xxhash

from data.augment.gates import Gates
from data.augment.masked import Masked
from data.augment.paraphrase import Paraphrase
from data.augment.plan import LINEAGE
from data.augment.reorder import Reorder
from data.augment.stage import Augment
from data.augment.technique import Request, Rewriter
from data.build import DataConfig, build_dataset
from data.clean.language import Language
from data.document import Document, Drop, Dropped
from data.engine import LocalPool
from data.heldout import HeldOut
from data.stage import NOT_IN_KEY, Counts
from data.strikes import STRIKES
from data.tables import read_documents, read_dropped, write_documents

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
EVERYTHING = Gates(
    length_ratio=(0.0, 1e9), similarity=(0.0, 1.0), language=False, numbers=False, names=False, max_loops=2.0
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


@dataclass(frozen=True, kw_only=True)
class Deadly:
    """A rule, or a model, that is killed as the OOM killer does it at texts with the word "poison".

    asked: a folder where the groups that it was asked for are noted, one file a process.
    """

    asked: Path = field(metadata=NOT_IN_KEY)
    in_driver: bool = False

    name: ClassVar[str] = "deadly"
    libraries: ClassVar[tuple[str, ...]] = ()
    model: ClassVar[str] = "none"

    def inputs_key(self) -> Any:
        return None

    def build(self) -> Rewriter:
        return self

    def __call__(self, requests: Sequence[Request]) -> list[str | Drop]:
        with (self.asked / str(os.getpid())).open("a") as file:
            file.write(json.dumps([request.text.split()[0] for request in requests]) + "\n")
        if any("poison" in request.text for request in requests):
            os.kill(os.getpid(), signal.SIGKILL)
        return [" ".join(reversed(request.text.split(". "))) for request in requests]


def poisoned(folder: Path, where: Sequence[tuple[int, int]]) -> list[Path]:
    """Three shards of 12 training documents, some of which (shard, place) kill; their first words are their names."""
    folder.mkdir(parents=True)
    paths = []
    for shard in range(3):
        documents = []
        for place in range(12):
            text = f"{shard}-{place} " + ("poison" if (shard, place) in where else prose(12 * shard + place))
            meta = {"split": "train", "group": f"group{shard}-{place}"}
            documents.append(Document(id=f"s:{shard}-{place}", text=text, source="s", meta=meta))
        paths.append(folder / f"{shard:05d}.parquet")
        write_documents(paths[-1], documents)
    return paths


def check_poisoned(output: Path, counts: Counts, asked: Path, where: Sequence[tuple[int, int]]) -> None:
    """Two copies of each document, those of the deadly ones rejected, and only their chunks of four worked on again."""
    names = {f"{shard}-{place}" for shard in range(3) for place in range(12)}
    deadly = {f"{shard}-{place}" for shard, place in where}
    dropped = [row for path in sorted((output / "dropped").glob("*.parquet")) for row in read_dropped(path)]
    killed = [row for row in dropped if row.drop.reason == "killed_worker"]
    assert Counter(row.drop.partner for row in killed) == {f"s:{name}": 2 for name in deadly}
    assert {(row.step, row.drop.value, row.document.text) for row in killed} == {("augment", STRIKES, "")}
    kept = [document for path in sorted((output / "kept").glob("*.parquet")) for document in read_documents(path)]
    assert {document.id for document in kept} >= {f"s:{name}" for name in names}, "parents stay, the deadly ones too"
    tried = [row.document.id for row in dropped] + [one.id for one in kept if LINEAGE in one.meta]
    assert len(tried) == len(set(tried)) == 72 == counts.created
    assert counts == Counts(read=36, created=72, kept=len(kept), dropped=len(dropped)) and counts.balanced
    groups = [json.loads(line) for path in asked.iterdir() for line in path.read_text().splitlines()]
    of_deadly = {f"{shard}-{place}" for shard, last in where for place in range(last // 4 * 4, last // 4 * 4 + 4)}
    times = Counter(name for group in groups for name in set(group))
    assert {name for name, count in times.items() if count > 1} == of_deadly, "whole chunks are not done again"
    alone = [group for group in groups if len(set(group)) == 1]
    assert sum(set(group) <= deadly for group in alone) == STRIKES * len(where)


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
