"""Masked-token replacement: some words of a text are masked, and a masked language model fills the gaps with others.

Whole words only, one mask each; never the word that stood there; names, numbers, capitalised words and code are left.
The model is a `Filler`, built from a spec of the config (`models.fill.MaskedFiller`); it runs in the driver.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from data.augment.sentences import is_prose, paragraphs
from data.augment.technique import WORD, Request, chance, other_language
from data.document import Drop

VERSION = 1
_ENDS = re.compile(r"[.,;:!?)\"”’]*(?:\s|\Z)")
LEAST_LETTERS = 3  # of a word that may be masked: shorter ones are mostly grammar


@dataclass(frozen=True, slots=True)
class Masked:
    """A text with the words to replace, as (start, end) in characters, in order. seed: of the draws."""

    text: str
    spans: tuple[tuple[int, int], ...]
    seed: int


class Filler(Protocol):
    """A masked language model."""

    def fill(self, masked: Sequence[Masked]) -> list[list[str | None]]:
        """For each text and each span another word, or None where the model has none to offer."""
        ...


class FillerSpec(Protocol):
    """A frozen value in a config that makes a filler when the stage runs."""

    def build(self) -> Filler:
        """The filler, loaded; ValueError in one line where something is missing."""
        ...


@dataclass(frozen=True, kw_only=True)
class MaskedReplacement:
    """filler: a spec with `build()`, or a filler itself. share: of the words, how many are masked (at least one).

    language: that the model was trained on; texts in others are refused. None takes every text.
    """

    filler: FillerSpec | Filler
    share: float = 0.15
    language: str | None = "en"

    name: ClassVar[str] = "masked"
    in_driver: ClassVar[bool] = True
    libraries: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"MaskedReplacement: share is {self.share}: expected a share of words above 0, at most 1")

    @property
    def model(self) -> str:
        """The filler's checkpoint, for the lineage."""
        return str(getattr(self.filler, "checkpoint", type(self.filler).__name__))

    def inputs_key(self) -> Any:
        """What the filler says of the files that it reads; None where it says nothing."""
        key = getattr(self.filler, "inputs_key", None)
        return key() if key else None

    def build(self) -> MaskedRewriter:
        """The rewriter, with its model loaded."""
        build = getattr(self.filler, "build", None)
        return MaskedRewriter(self, build() if build else self.filler)


class MaskedRewriter:
    """`MaskedReplacement` with its model loaded."""

    def __init__(self, config: MaskedReplacement, filler: Any):
        self.config, self.filler = config, filler

    def __call__(self, requests: Sequence[Request]) -> list[str | Drop]:
        prepared = [self.mask(request) for request in requests]
        filled = iter(self.filler.fill([item for item in prepared if isinstance(item, Masked)]))
        return [item if isinstance(item, Drop) else _filled(item, next(filled)) for item in prepared]

    def mask(self, request: Request) -> Masked | Drop:
        """The text with the words that are to be replaced; why not, where there are none."""
        text = request.text
        if not text.strip():
            return Drop("empty_text")
        if self.config.language is not None and (refused := other_language(request, self.config.language)):
            return refused
        spans, number, offset = [], 0, 0
        for paragraph in paragraphs(text):
            if is_prose(paragraph.text):
                for match in WORD.finditer(paragraph.text):
                    number += 1
                    start, end = offset + match.start(), offset + match.end()
                    small = match.group().isalpha() and match.group().islower() and end - start >= LEAST_LETTERS
                    if small and _apart(text, start, end):
                        spans.append((start, end))
            offset += len(paragraph.text) + len(paragraph.space)
        if not spans:
            return Drop("nothing_to_mask")
        count = min(len(spans), max(1, int(self.config.share * number)))
        return Masked(text, tuple(sorted(chance(request.seed).sample(spans, count))), request.seed)


def _apart(text: str, start: int, end: int) -> bool:
    """Whether a word stands between spaces or ordinary marks: no part of an address, a compound or code."""
    before = text[start - 1 : start]
    return (not before or before.isspace() or before in "(\"“'‘") and _ENDS.match(text, end) is not None


def _filled(masked: Masked, replacements: Sequence[str | None]) -> str | Drop:
    out: list[str] = []
    end = 0
    for (start, stop), word in zip(masked.spans, replacements, strict=True):
        if word and word.lower() != masked.text[start:stop].lower():
            out += (masked.text[end:start], word)
            end = stop
    return "".join([*out, masked.text[end:]]) if out else Drop("nothing_replaced")
