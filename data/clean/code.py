"""Rules for source code: generated, minified, vendored, long-lined and data-like files go, licences are allow-listed.

The limits of line length, letters and generated-file marks follow StarCoder (Li et al. 2023, section 3.1) and The
Stack's preparation: longest line 1,000, mean line 100, letters at least 25 % of the characters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from data.clean.step import Phase, Rule, at_least, at_most, judge, ratio
from data.document import Document, Drop
from data.features import Features

VERSION = 1
_HEAD = 1500  # characters at the top of a file where generators leave their note
_GENERATED = re.compile(
    r"(?:\bauto-?\s?generated|\bgenerated (?:by|automatically)\b|\bdo not edit\b|@generated\b"
    r"|this file (?:was|is) (?:automatically )?generated)",
    re.IGNORECASE,
)
_VENDORED = re.compile(
    r"(?:^|/)(?:_?vendor(?:ed)?|third[_-]?party|node_modules|bower_components|extern(?:al)?s?|site-packages/pip/_vendor)/"
)
_LITERAL = re.compile(r"(?:0x[0-9a-fA-F]+|[-+]?\d+\.?\d*(?:[eE][-+]?\d+)?)[,\s;\]})]")
PERMISSIVE = (
    *(
        "MIT",
        "MIT-0",
        "Apache-2.0",
        "Apache",
        "BSD",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "0BSD",
        "ISC",
        "Unlicense",
        "Zlib",
    ),
    *("CC0-1.0", "PSF-2.0", "PSFL", "Python-2.0", "HPND", "BSL-1.0"),
    "License agreement for matplotlib versions 1.3.0 and later",
)


@dataclass(frozen=True, kw_only=True)
class CodeQuality:
    """Drop files that nobody wrote by hand, or that are data."""

    max_line: int = 1000
    max_mean_line: float = 100.0
    min_letters: float = 0.25
    max_literals: float = 0.4
    min_chars: int = 100
    max_chars: int = 1_000_000
    drop_generated: bool = True
    drop_vendored: bool = True

    name: ClassVar[str] = "code_quality"
    phase: ClassVar[Phase] = "clean"

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """What is asked of a text, in order."""
        return (
            at_least("too_short", _chars, self.min_chars),
            at_most("too_long", _chars, self.max_chars),
            at_most("minified", mean_line, self.max_mean_line),
            at_most("long_line", longest_line, self.max_line),
            at_least("few_letters", letters, self.min_letters),
            at_most("data_like", literals, self.max_literals),
        )

    def __call__(self, document: Document, features: Features) -> Document | Drop:
        drop = judge(self.rules, features)
        if drop:
            return drop
        if self.drop_generated:
            mark = _GENERATED.search(document.text[:_HEAD])
            if mark:
                return Drop("generated", mark.group(), None)
        path = str(document.meta.get("path", ""))
        if self.drop_vendored and _VENDORED.search(path):
            return Drop("vendored", path, None)
        return document


@dataclass(frozen=True, kw_only=True)
class Licence:
    """Keep documents whose meta["licence"] is allowed; names are compared without case, " License" and " Licence".

    Of an SPDX expression, every part of an AND and one part of an OR must be. allow_missing: whether documents that
    say nothing are kept.
    """

    allowed: tuple[str, ...] = PERMISSIVE
    allow_missing: bool = True

    name: ClassVar[str] = "licence"
    phase: ClassVar[Phase] = "clean"

    def __call__(self, document: Document, features: Features) -> Document | Drop:
        licence = document.meta.get("licence") or document.meta.get("license")
        if not licence:
            return document if self.allow_missing else Drop("no_licence", None, ", ".join(self.allowed))
        allowed = {_plain(name) for name in self.allowed}
        choices = re.split(r"\s+OR\s+", str(licence).replace("(", " ").replace(")", " "))
        if any({_plain(part) for part in re.split(r"\s+AND\s+", choice)} <= allowed for choice in choices):
            return document
        return Drop("licence_not_allowed", str(licence)[:80], ", ".join(self.allowed))


def _plain(name: str) -> str:
    return re.sub(r"\b(?:software|the|licen[sc]e[ds]?|version|v)\b|[\s,-]", "", name.casefold())


def _chars(features: Features) -> int:
    return len(features.text)


def mean_line(features: Features) -> float:
    """Mean characters of a line that is not empty."""
    lines = features.filled_lines
    return ratio(sum(map(len, lines)), len(lines))


def longest_line(features: Features) -> int:
    """Characters of the longest line."""
    return max(map(len, features.lines), default=0)


def letters(features: Features) -> float:
    """Letters as a share of the characters that are no whitespace."""
    return ratio(features.alphabetic, sum(map(len, features.chunks)))


def literals(features: Features) -> float:
    """Characters in number literals as a share of those that are no whitespace: arrays of data are mostly these."""
    return ratio(sum(map(len, _LITERAL.findall(features.text))), sum(map(len, features.chunks)))
