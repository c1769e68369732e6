"""The filter that FineWeb added to Gopher's and C4's (Penedo et al. 2024, section 3.6): pages that are lists.

Source of the limits: datatrove 0.10, filters/fineweb_quality_filter.py. The ends of sentences are those of all scripts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar

from data.clean.step import Phase, Rule, at_least, at_most, judge, ratio
from data.document import Document, Drop
from data.features import SENTENCE_ENDS, Features

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class FineWeb:
    """Drop pages whose lines do not end as sentences do, are short, repeat, or are too many for their words."""

    min_ended_lines: float = 0.12
    max_short_lines: float = 0.67
    short_line_chars: int = 30
    max_duplicate_line_chars: float = 0.01
    max_newlines_per_word: float = 0.3

    name: ClassVar[str] = "fineweb"
    phase: ClassVar[Phase] = "clean"

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """What is asked of a text, in order."""
        return (
            at_least("no_lines", _line_count, 1),
            at_least("few_ended_lines", _ended_lines, self.min_ended_lines),
            at_most("too_many_short_lines", partial(_short_lines, chars=self.short_line_chars), self.max_short_lines),
            at_most("duplicate_line_chars", _duplicate_line_chars, self.max_duplicate_line_chars),
            at_most("too_many_newlines", _newlines_per_word, self.max_newlines_per_word),
        )

    def __call__(self, document: Document, features: Features) -> Document | Drop:
        return judge(self.rules, features) or document


def _line_count(features: Features) -> int:
    return len(features.filled_lines)


def _ended_lines(features: Features) -> float:
    lines = features.filled_lines
    return ratio(len([line for line in lines if line[-1] in SENTENCE_ENDS]), len(lines))


def _short_lines(features: Features, chars: int) -> float:
    lines = features.filled_lines
    return ratio(len([line for line in lines if len(line) <= chars]), len(lines))


def _duplicate_line_chars(features: Features) -> float:
    return ratio(features.filled_duplicates[1], len(features.text) - features.text.count("\n"))


def _newlines_per_word(features: Features) -> float:
    return ratio(features.text.count("\n"), len(features.english.words))
