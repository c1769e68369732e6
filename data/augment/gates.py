"""What a copy must pass before it may stand beside its parent.

similarity: half the cosine of how often each word stem occurs (the same subject), half the share of word triples in
common (the same wording). A copy of the text has 1, another text about 0; a document with its sentences in another
order about 0.9, one with a tenth of its words replaced 0.7, a free paraphrase 0.3 to 0.5.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from data.augment.facts import changed_numbers, names, numbers, openers
from data.augment.technique import WORD, words
from data.clean.language import Language
from data.document import Drop
from data.features import Words

VERSION = 2
STEM = 6  # letters of a word that count for the cosine: endings differ, stems do not
LEAST_FOR_LANGUAGE = 60  # characters; on less the detector guesses
_LOOP_WORDS = 5  # words of a sequence whose repetition is a loop
_RUN = re.compile(r"(.)\1{9,}|(\b\w+\b)(?:\W+\2\b){3,}", re.DOTALL)  # one character ten times, one word four times
# What models write around an answer, and what is left of their templates, masks and unknown words.
_DEBRIS = re.compile(
    r"<\|?/?(?:im_start|im_end|s|pad|unk|mask|eos|bos|endoftext|assistant|user|system)\|?>|\[(?:MASK|UNK|PAD|CLS|SEP)\]"
    r"|\[/?INST\]|^(?:assistant|user|system)\s*$|^\s*(?:Sure|Certainly|Of course)[,!]"
    r"|^\s*(?:Here(?:'s| is| are)|Below is|The following is) (?:a|an|the|my|your|one)?\s*\w*\s*"
    r"(?:paraphrase|rewritten|rewrite|revised|rephrased|version|summary|simplified|text|passage)"
    r"|\bas an AI\b|\bAI language model\b|\bI(?:'m sorry|'m unable| cannot| can't) (?:but|to|help|assist|fulfil)"
    r"|^\s*(?:Original|Paraphrase|Rewritten|Rephrased|Simplified)(?: text| version)?:|▁|\ufffd"
    r"|(?:^|\s)[*#@](?=[^\W\d_]{3,}(?:\s|$))",  # words that a translator did not know
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True, kw_only=True)
class Gates:
    """length_ratio: least and most characters of a copy for each of its parent's. similarity: least and most.

    language, numbers, names: whether they must be those of the parent; a number or name that is new counts as changed,
    and so does a number that occurs more or less often.
    max_loops: by how much the share of characters in repeated five-word sequences may exceed the parent's.
    """

    length_ratio: tuple[float, float] = (0.5, 2.0)
    similarity: tuple[float, float] = (0.3, 0.98)
    language: bool = True
    numbers: bool = True
    names: bool = True
    max_loops: float = 0.1

    def __post_init__(self) -> None:
        for name in ("length_ratio", "similarity"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"Gates: {name} is {low} to {high}: expected two bounds from 0 up, the lower first")

    def check(self, parent: Traits, copy: Traits, siblings: Sequence[Traits] = ()) -> Drop | dict[str, float]:
        """Why the copy is refused, or its measures {"length_ratio", "similarity"}. Cheap questions come first."""
        if not copy.text.strip():
            return Drop("empty_output")
        ratio = len(copy.text) / max(1, len(parent.text))
        low, high = self.length_ratio
        if not low <= ratio <= high:
            return Drop("too_short" if ratio < low else "too_long", round(ratio, 4), low if ratio < low else high)
        debris = new_debris(parent, copy)
        if debris is not None:
            return Drop("debris", debris)
        if self.numbers and (changed := shown(*changed_numbers(parent.numbers, copy.numbers))):
            return Drop("numbers_changed", changed)
        if self.names and (changed := changed_names(parent, copy)):
            return Drop("names_changed", changed)
        loops = copy.loops - parent.loops
        if loops > self.max_loops:
            return Drop("loop", round(loops, 4), self.max_loops)
        alike = similarity(parent, copy)
        low, high = self.similarity
        if not low <= alike <= high:
            reason = "another_text" if alike < low else "same_text"
            return Drop(reason, round(alike, 4), low if alike < low else high)
        for sibling in siblings:
            near = similarity(sibling, copy)
            if near > high:
                return Drop("same_as_sibling", round(near, 4), high)
        if self.language and parent.language != copy.language and len(copy.text) >= LEAST_FOR_LANGUAGE:
            return Drop("language_changed", copy.language, parent.language)
        return {"length_ratio": round(ratio, 4), "similarity": round(alike, 4)}


@dataclass(frozen=True)
class Traits:
    """What the gates look at in one text, each computed once. known_language: where somebody has detected it."""

    text: str
    known_language: str | None = field(default=None, compare=False)

    @cached_property
    def words(self) -> list[str]:
        """The words, in small letters."""
        return words(self.text)

    @cached_property
    def stems(self) -> Counter[str]:
        """How often each stem of a word occurs."""
        return Counter(word[:STEM] for word in self.words)

    @cached_property
    def triples(self) -> set[tuple[str, ...]]:
        """Every three words in a row; of a shorter text, all of them."""
        return set(zip(self.words, self.words[1:], self.words[2:])) or {tuple(self.words)}

    @cached_property
    def names(self) -> set[str]:
        """The names in it, as `data.augment.facts.names` finds them."""
        return names(self.text)

    @cached_property
    def openers(self) -> set[str]:
        """Words that begin a sentence with their only capital, which may be names."""
        return openers(self.text)

    @cached_property
    def small_stems(self) -> set[str]:
        """Of the words that are written in small letters."""
        return {word[:STEM] for word in WORD.findall(self.text) if word.islower()}

    @cached_property
    def numbers(self) -> Counter[str]:
        """How often each number occurs, in one spelling."""
        return numbers(self.text)

    @cached_property
    def loops(self) -> float:
        """Share of characters in five-word sequences that occurred before; 1 for a run of one character or word."""
        if _RUN.search(self.text):
            return 1.0
        found = Words(self.words)
        return found.duplicated_chars(_LOOP_WORDS) / found.char_count if found.char_count else 0.0

    @cached_property
    def language(self) -> str:
        """ISO 639-1 code, known or detected in the first 2,000 characters."""
        return self.known_language or Language().detect(self.text[:2000])[0]


def similarity(one: Traits, other: Traits) -> float:
    """From 0 (nothing in common) to 1 (word for word the same)."""
    a, b = one.stems, other.stems
    if len(a) > len(b):
        a, b = b, a
    product = sum(count * b[stem] for stem, count in a.items() if stem in b)
    norms = math.sqrt(sum(c * c for c in a.values()) * sum(c * c for c in b.values()))
    cosine = product / norms if norms else 0.0
    shared = len(one.triples & other.triples)
    return (cosine + shared / (len(one.triples) + len(other.triples) - shared)) / 2


def shown(gone: Iterable[str], new: Iterable[str]) -> str:
    """What went and what came, such as "-1984 +1948"; empty where nothing did."""
    gone, new = sorted(gone), sorted(new)
    return " ".join([*(f"-{item}" for item in gone[:4]), *(f"+{item}" for item in new[:4])])


def changed_names(parent: Traits, copy: Traits) -> str:
    """Names of the parent that are gone, and names that no word of the parent accounts for.

    In English the first word of a sentence counts too, unless one of the texts has its stem in small letters.
    """
    spelled, known = ({*t.words, *(name.lower() for name in t.names | t.openers)} for t in (copy, parent))
    gone = {name for name in parent.names if name.lower() not in spelled}
    new = {name for name in copy.names if name.lower() not in known}
    first = {name for name in parent.openers if name.lower() not in spelled}
    other = {name for name in copy.openers if name.lower() not in known}
    if (first or other) and parent.language.startswith("en"):
        small = parent.small_stems | copy.small_stems
        gone |= {name for name in first if name.lower()[:STEM] not in small}
        new |= {name for name in other if name.lower()[:STEM] not in small}
    return shown(gone, new)


def new_debris(parent: Traits, copy: Traits) -> str | None:
    """A scrap of a template, mask or refusal that the parent does not hold."""
    for match in _DEBRIS.finditer(copy.text):
        if match.group() not in parent.text:
            return match.group().strip()[:40] or match.group()[:40]
    return None
