"""Normalisation of text, and the plain rules on length and letters.

`Normalise` only makes equal what looks equal: it repairs encodings (by choice, with ftfy), composes characters (NFC),
unifies line endings and removes characters that nobody sees. Code keeps its indentation and its inner spaces.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import ftfy

from data.clean.step import Phase, Rule, at_least, at_most, judge, note_changes, ratio
from data.document import Document, Drop
from data.features import Features

VERSION = 1
LIBRARIES = ("ftfy",)

_FTFY_PIECE = 200_000  # characters: ftfy works line by line, a longer line is left as it is so that time stays linear
_LINE_ENDS = re.compile("\r\n?|[\x85\u2028\u2029]")
_PAGE_BREAKS = re.compile("[\x0b\x0c]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
# Never seen: zero-width space, word joiner, byte order mark, soft hyphen, embeddings and overrides of direction
# ("Trojan Source", Boucher & Anderson 2021). The direction marks U+200E and U+200F stay: they carry meaning.
_INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad\u202a-\u202e\u2066-\u2069]")
# The joiners U+200C and U+200D shape Persian, Indic scripts and emoji; between Latin letters and spaces they are noise.
_STRAY_JOINER = re.compile("(?<![\u0590-\U0010ffff])[\u200c\u200d]+(?![\u0590-\U0010ffff])")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ODD_SPACE = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f]")
_SPACES = re.compile(r"[ \t]{2,}|\t")
_SPACE_BEFORE_END = re.compile(r"[ \t]+$", re.MULTILINE)
_SPACE_AFTER_START = re.compile(r"^[ \t]+", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{3,}")
_NEEDS_WORK = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]|  | $|^ |\n{3}", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Normalise:
    """Make a text regular without losing what it says; counts what it changed in meta["changed"].

    whitespace: "prose" joins runs of spaces and tabs, trims lines and keeps at most one blank line; "code" only
        removes spaces at line ends, and more than `max_blank_lines` blank lines; "keep" touches no whitespace.
    repair_encoding: undo mojibake ("sÃ©ance" -> "séance") with ftfy, which changes no other character here.
    """

    whitespace: Literal["prose", "code", "keep"] = "prose"
    repair_encoding: bool = False
    compose: bool = True
    max_blank_lines: int = 3

    name: ClassVar[str] = "normalise"
    phase: ClassVar[Phase] = "clean"

    def __call__(self, document: Document, features: Features) -> Document | Drop:
        text = document.text
        changes: dict[str, int] = {}
        if not text.isascii():
            text, changes = self._characters(text)
        elif text and self.whitespace == "prose" and not _NEEDS_WORK.search(text):
            return document
        text, changes["line_ends"] = _LINE_ENDS.subn("\n", text) if not text.isascii() or "\r" in text else (text, 0)
        text, changes["page_breaks"] = _PAGE_BREAKS.subn("\n" if self.whitespace == "prose" else "", text)
        text, changes["controls"] = _CONTROLS.subn("", text)
        if self.whitespace != "keep":
            before = len(text)
            text = self._prose(text) if self.whitespace == "prose" else self._code(text)
            changes["whitespace"] = before - len(text)
        if not text.strip():
            return Drop("empty", 0, 1)
        return note_changes(document, self.name, changes, text)

    def _characters(self, text: str) -> tuple[str, dict[str, int]]:
        changes: dict[str, int] = {}
        if _SURROGATE.search(text):
            changes["surrogates"] = len(_SURROGATE.findall(text))
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if self.repair_encoding:
            repaired = _repair(text)
            changes["encoding"] = int(repaired != text)
            text = repaired
        text, changes["invisible"] = _INVISIBLE.subn("", text)
        text, joiners = _STRAY_JOINER.subn("", text)
        changes["invisible"] += joiners
        if self.compose and not unicodedata.is_normalized("NFC", text):
            changes["composed"] = 1
            text = unicodedata.normalize("NFC", text)
        if self.whitespace == "prose":
            text, changes["spaces"] = _ODD_SPACE.subn(" ", text)
        return text, changes

    def _prose(self, text: str) -> str:
        text = _SPACES.sub(" ", text)
        text = _SPACE_AFTER_START.sub("", _SPACE_BEFORE_END.sub("", text))
        return _BLANK_LINES.sub("\n\n", text).strip()

    def _code(self, text: str) -> str:
        text = "\n".join(line.rstrip(" \t") for line in text.split("\n"))
        most = self.max_blank_lines + 1
        return re.sub(rf"\n{{{most + 1},}}", "\n" * most, text).strip("\n")


def _repair(text: str) -> str:
    """Mojibake undone line by line; lines that ftfy would need long for stay as they are."""
    return "\n".join(
        line if line.isascii() or len(line) > _FTFY_PIECE else ftfy.fix_encoding(line) for line in text.split("\n")
    )


@dataclass(frozen=True, kw_only=True)
class Words:
    """Number of whitespace-separated words; the seed's rule is 50 to 10,000."""

    minimum: int = 50
    maximum: int = 10_000

    name: ClassVar[str] = "words"
    phase: ClassVar[Phase] = "clean"

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """What is asked of a text, in order."""
        return (
            at_least("too_few_words", word_count, self.minimum),
            at_most("too_many_words", word_count, self.maximum),
        )

    def __call__(self, document: Document, features: Features) -> Document | Drop:
        return judge(self.rules, features) or document


@dataclass(frozen=True, kw_only=True)
class Characters:
    """Length of the text in characters; the maximum keeps one broken file from filling the memory of later stages."""

    minimum: int = 1
    maximum: int = 10_000_000

    name: ClassVar[str] = "characters"
    phase: ClassVar[Phase] = "clean"

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """What is asked of a text, in order."""
        return (
            at_least("too_short", char_count, self.minimum),
            at_most("too_long", char_count, self.maximum),
        )

    def __call__(self, document: Document, features: Features) -> Document | Drop:
        return judge(self.rules, features) or document


@dataclass(frozen=True, kw_only=True)
class WordLength:
    """Mean characters of a whitespace-separated word; the seed's rule is at least 3."""

    minimum: float = 3.0
    maximum: float = 1000.0

    name: ClassVar[str] = "word_length"
    phase: ClassVar[Phase] = "clean"

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """What is asked of a text, in order."""
        return (
            at_least("short_words", mean_word_length, self.minimum),
            at_most("long_words", mean_word_length, self.maximum),
        )

    def __call__(self, document: Document, features: Features) -> Document | Drop:
        return judge(self.rules, features) or document


@dataclass(frozen=True, kw_only=True)
class Alphabetic:
    """Share of characters that are letters, spaces and all else counted below the line; the seed's rule is 0.7."""

    minimum: float = 0.7

    name: ClassVar[str] = "alphabetic"
    phase: ClassVar[Phase] = "clean"

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """What is asked of a text, in order."""
        return (at_least("low_alphabetic_ratio", alphabetic_ratio, self.minimum),)

    def __call__(self, document: Document, features: Features) -> Document | Drop:
        return judge(self.rules, features) or document


@dataclass(frozen=True, kw_only=True)
class MetaIs:
    """Keep documents whose meta value is one of a list; reason `meta_not_allowed` (licences, content types)."""

    field: str
    allowed: tuple[str, ...]
    keep_missing: bool = True

    name: ClassVar[str] = "meta_is"
    phase: ClassVar[Phase] = "clean"

    def __call__(self, document: Document, features: Features) -> Document | Drop:
        value = document.meta.get(self.field)
        if (value is None and self.keep_missing) or value in self.allowed:
            return document
        return Drop("meta_not_allowed", f"{self.field}={value}", ", ".join(self.allowed))


def word_count(features: Features) -> int:
    """Whitespace-separated words."""
    return len(features.chunks)


def char_count(features: Features) -> int:
    """Characters of the text."""
    return len(features.text)


def mean_word_length(features: Features) -> float:
    """Characters of a whitespace-separated word."""
    return ratio(sum(map(len, features.chunks)), len(features.chunks))


def alphabetic_ratio(features: Features) -> float:
    """Share of all characters that are letters."""
    return ratio(features.alphabetic, len(features.text))
