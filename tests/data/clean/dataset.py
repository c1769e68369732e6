"""A small whole dataset whose documents meet every fate: kept, filtered, repeated, unreadable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from data.build import DataConfig, build_dataset
from data.clean.basic import Normalise, Words
from data.clean.gopher_repetition import GopherRepetition
from data.clean.language import Language, LanguageIs
from data.clean.pii import PersonalData
from data.clean.stage import cleaning
from data.clean.step import Recipe
from data.dedup.exact import ExactDedup
from data.document import Document, Drop, Dropped
from data.engine import LocalPool
from tests.data.clean.samples import PROSE
from tests.data.clean.test_language import TEXTS

RECIPE = Recipe(
    name="small",
    steps=(
        Normalise(),
        Words(minimum=15, maximum=5000),
        GopherRepetition(top_ngrams=()),
        PersonalData(),
        Language(),
        LanguageIs(languages=("en",), minimum=0.5),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """Sixty readable documents and one that is not."""

    name: str = "mixed"

    version: ClassVar[int] = 1
    code_modules: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ()

    def shards(self) -> Sequence[int]:
        return [0, 1]

    def inputs_key(self) -> Any:
        return "mixed 1"

    def documents(self, shard: int) -> Iterator[Document | Dropped]:
        yield from self._broken(shard)
        for index in range(30):
            yield self._document(f"{self.name}:{shard}-{index}", shard * 30 + index)

    def _broken(self, shard: int) -> Iterator[Dropped]:
        if shard == 0:
            broken = Document(id="mixed:broken", text="{not json", source=self.name, meta={"offset": 17})
            yield Dropped(broken, "read", Drop("bad_json", "line 3", None))

    def _document(self, identifier: str, number: int) -> Document:
        text = (
            f"Story number {number}. {PROSE}",
            f"Too short {number}.",
            f"Write  to  keeper{number}@lock.example for story {number}.\r\n{PROSE}",
            f"Contact <me{number}@lock.example>\n" + "the very same line stands here\n" * 9 + PROSE,
            f"{TEXTS['fr']} Voici l'histoire numéro {number}.",
            f"Repeated by all. {PROSE}",
        )[number % 6]
        return Document(id=identifier, text=text, source=self.name, meta={"path": "stories.jsonl", "offset": number})


def build(path: Path) -> Path:
    """The dataset, without tokens."""
    stages = (*cleaning(recipes=(("mixed", RECIPE),)), ExactDedup())
    engine = LocalPool(workers=1)
    return build_dataset(DataConfig(path=str(path), sources=(Mixed(),), stages=stages, tokenizer=None, engine=engine))
