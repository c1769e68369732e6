"""What every augmentation technique has in common: a request, the answer, and how words are found.

A technique is a frozen dataclass, a value in `Augment(technique=...)`. It loads what it needs in `build()`, which is
called where the work is done, and is then a function from requests to texts. The answer to a request depends on that
request alone, never on its neighbours, on batch sizes or on worker counts.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import xxhash

from data.document import Drop

VERSION = 1
WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_STARTS = frozenset(".!?:;\"“”'‘’«([{*#>|•–—-\n")  # what may stand before the first word of a sentence, spaces apart


@dataclass(frozen=True, slots=True)
class Request:
    """One text to augment. seed: the only source of chance; language: ISO 639-1, "und" where it is not known.

    dialogue: whether the whole text is turns of a conversation.
    """

    text: str
    seed: int
    language: str = "en"
    dialogue: bool = False


class Rewriter(Protocol):
    """A technique with everything loaded."""

    def __call__(self, requests: Sequence[Request]) -> list[str | Drop]:
        """For each request a new text, or why there is none. Never raises for what one text holds."""
        ...


class Technique(Protocol):
    """A frozen value of a config.

    name: as lineage and reports call it. in_driver: True where it runs a model or a program, so that it is built once,
    in the driver, and never in pool workers. libraries: distributions whose versions shape what it writes.
    It may have `drawn(seed) -> {name: value}`: what a seed draws among its settings (a style), for the lineage.
    """

    name: ClassVar[str]
    in_driver: ClassVar[bool]

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions whose versions shape what it writes."""
        ...

    @property
    def model(self) -> str:
        """What does the rewriting, for the lineage: a checkpoint, a program, a word net."""
        ...

    def build(self) -> Rewriter:
        """Load. ValueError in one line where something is missing."""
        ...

    def inputs_key(self) -> Any:
        """What identifies the files that it reads, as a JSON value."""
        ...


def derive(seed: int, *parts: str | int) -> int:
    """A 64-bit number that depends on these values alone, the same on every machine."""
    return xxhash.xxh3_64_intdigest(":".join(map(str, (seed, *parts))).encode("utf-8", "replace"))


def chance(seed: int) -> random.Random:
    """A generator for one text."""
    return random.Random(seed)


def other_language(request: Request, language: str) -> Drop | None:
    """The reason to refuse a text of another language than the technique's; None where the two agree."""
    if request.language.split("-")[0] == language.split("-")[0]:
        return None
    return Drop("wrong_language", request.language, language)


def starts_sentence(text: str, start: int) -> bool:
    """Whether the word at `start` is the first of a sentence, a line or a quotation."""
    place = start - 1
    while place >= 0 and text[place] in " \t":
        place -= 1
    return place < 0 or text[place] in _STARTS


def words(text: str) -> list[str]:
    """The words of a text in small letters."""
    return [word.lower() for word in WORD.findall(text)]
