"""The repetition rules of MassiveText (Rae et al. 2021, "Gopher", appendix A.1.1, table A1), in named variants.

The paper does not say whether the first occurrence of a repeated piece counts, nor of which characters the share is:

    variant        repeated pieces                           of which characters
    "datatrove"    after the first, n-grams never overlap    of the whole text
    "dolma"        every occurrence, n-grams overlap         of the words (or of all n-grams); no paragraph rules
    "dclm"         every occurrence, each word once          of the lines or words, empty lines left out

Sources: datatrove 0.10 filters/gopher_repetition_filter.py; dolma 1.5 taggers/gopher.py; DCLM
baselines/mappers/filters/content_filters.py, massive_web_repetition_filters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar

from data.clean.gopher_quality import Variant
from data.clean.step import Phase, Rule, at_most, judge, ratio
from data.document import Document, Drop
from data.features import Features, Words

VERSION = 1
TOP_NGRAMS = ((2, 0.20), (3, 0.18), (4, 0.16))  # n, share of characters: Gopher, table A1
DUPLICATE_NGRAMS = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))


@dataclass(frozen=True, kw_only=True)
class GopherRepetition:
    """Drop what repeats its lines, paragraphs or n-grams; a pair (n, share of characters) each."""

    variant: Variant = "datatrove"
    max_duplicate_lines: float = 0.30
    max_duplicate_line_chars: float = 0.20  # dolma 1.5 mixes with 0.30
    max_duplicate_paragraphs: float = 0.30
    max_duplicate_paragraph_chars: float = 0.20
    top_ngrams: tuple[tuple[int, float], ...] = TOP_NGRAMS
    duplicate_ngrams: tuple[tuple[int, float], ...] = DUPLICATE_NGRAMS

    name: ClassVar[str] = "gopher_repetition"
    phase: ClassVar[Phase] = "clean"

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """What is asked of a text, in order."""
        pieces, top, duplicate = _REPETITION[self.variant]
        limits = {
            "duplicate_paragraphs": self.max_duplicate_paragraphs,
            "duplicate_paragraph_chars": self.max_duplicate_paragraph_chars,
            "duplicate_lines": self.max_duplicate_lines,
            "duplicate_line_chars": self.max_duplicate_line_chars,
        }
        return (
            *(at_most(reason, measure, limits[reason]) for reason, measure in pieces),
            *(at_most(f"top_{n}_gram", partial(top, n=n), limit) for n, limit in self.top_ngrams),
            *(at_most(f"duplicate_{n}_grams", partial(duplicate, n=n), limit) for n, limit in self.duplicate_ngrams),
        )

    def __call__(self, document: Document, features: Features) -> Document | Drop:
        rules = self.rules
        if self._ends_at_five and not _WORDS[self.variant](features).repeated(5):
            rules = rules[: -len(self.duplicate_ngrams)]  # no 5-gram repeats: their shares are all 0
        return judge(rules, features) or document

    @cached_property
    def _ends_at_five(self) -> bool:
        return bool(self.duplicate_ngrams) and all(n >= 5 and limit >= 0 for n, limit in self.duplicate_ngrams)


# Repetition, datatrove: only what comes after the first occurrence, as a share of all characters.


def _duplicate_paragraphs(features: Features) -> float:
    return features.paragraph_duplicates[0] / len(features.paragraphs)


def _duplicate_paragraph_chars(features: Features) -> float:
    return ratio(features.paragraph_duplicates[1], len(features.text))


def _duplicate_lines(features: Features) -> float:
    return features.newline_duplicates[0] / len(features.newline_lines)


def _duplicate_line_chars(features: Features) -> float:
    return ratio(features.newline_duplicates[1], len(features.text))


def _top_ngram(features: Features, n: int) -> float:
    chars, count = features.english.top_ngram(n)
    return ratio((chars + n - 1) * count, len(features.text)) if count else 0.0


def _duplicate_ngrams(features: Features, n: int) -> float:
    return ratio(features.english.duplicated_chars(n), len(features.text))


# Repetition, dolma and DCLM: every occurrence of what occurs more than once.


def _repeated(pieces: list[str]) -> tuple[int, int]:
    """(pieces, characters) of all occurrences of pieces that occur more than once."""
    repeated = [(piece, count) for piece, count in Counter(pieces).items() if count > 1]
    return sum(count for _, count in repeated), sum(len(piece) * count for piece, count in repeated)


def _dolma_lines(features: Features) -> float:
    lines = features.text.split("\n")
    return ratio(_repeated(lines)[0], len(lines))


def _dolma_line_chars(features: Features) -> float:
    return ratio(_repeated(features.text.split("\n"))[1], features.spaced.char_count)


def _dolma_top(features: Features, n: int) -> float:
    chars, count = features.spaced.top_ngram(n)
    return ratio(chars * count, features.spaced.char_count)


def _dolma_duplicate(features: Features, n: int) -> float:
    words, ends = features.spaced, features.spaced.ends
    repeated = sum(ends[place + n] - ends[place] for places in words.repeated(n) for place in places)
    return ratio(repeated, sum(ends[n:]) - sum(ends[: len(ends) - n])) if repeated else 0.0


def _pieces(features: Features, separator: str) -> list[str]:
    return [piece for piece in features.text.split(separator) if piece.strip()]


def _dclm_share(features: Features, separator: str, of_chars: bool) -> float:
    pieces = _pieces(features, separator)
    if len(pieces) < 2:
        return 0.0
    count, chars = _repeated(pieces)
    return ratio(chars, sum(map(len, pieces))) if of_chars else ratio(count, len(pieces))


def _dclm_top(features: Features, n: int) -> float:
    chars, count = features.content.longest_top_ngram(n)
    return ratio(chars * count, features.content.char_count)


def _dclm_duplicate(features: Features, n: int) -> float:
    words, ends = features.content, features.content.ends
    chars = free = 0
    for place in words.repeated_places(n):
        chars += ends[place + n] - ends[max(place, free)]
        free = place + n
    return ratio(chars, words.char_count)


_Pieces = tuple[tuple[str, Callable[[Features], float]], ...]
_REPETITION: dict[str, tuple[_Pieces, Callable[..., float], Callable[..., float]]] = {
    "datatrove": (
        (
            ("duplicate_paragraphs", _duplicate_paragraphs),
            ("duplicate_paragraph_chars", _duplicate_paragraph_chars),
            ("duplicate_lines", _duplicate_lines),
            ("duplicate_line_chars", _duplicate_line_chars),
        ),
        _top_ngram,
        _duplicate_ngrams,
    ),
    "dolma": (
        (("duplicate_lines", _dolma_lines), ("duplicate_line_chars", _dolma_line_chars)),
        _dolma_top,
        _dolma_duplicate,
    ),
    "dclm": (
        (
            ("duplicate_lines", partial(_dclm_share, separator="\n", of_chars=False)),
            ("duplicate_paragraphs", partial(_dclm_share, separator="\n\n", of_chars=False)),
            ("duplicate_line_chars", partial(_dclm_share, separator="\n", of_chars=True)),
            ("duplicate_paragraph_chars", partial(_dclm_share, separator="\n\n", of_chars=True)),
        ),
        _dclm_top,
        _dclm_duplicate,
    ),
}
_WORDS: dict[str, Callable[[Features], Words]] = {
    "datatrove": lambda features: features.english,
    "dolma": lambda features: features.spaced,
    "dclm": lambda features: features.content,
}
