"""The quality rules of MassiveText (Rae et al. 2021, "Gopher", appendix A.1.1), in named variants.

The paper leaves open what a word is. Projects chose differently under one name, so the variant is a setting:

    variant      words                  length        symbols                    bullets  ellipsis    stop words
    "datatrove"  spaCy, no punctuation  mean          # or ... … per spaCy word  • -      ... …       distinct
    "dolma"      whitespace             median        words holding # or …       * -      …           occurrences
    "dclm"       spaCy, no punctuation  mean, spaced  # ... ". . ." … a word     • - * ●  also . . .  also "The"

Sources: datatrove 0.10 filters/gopher_quality_filter.py; dolma 1.5 taggers/gopher.py with the limits of
configs/dolma-v1_5/mixing/cc-head.yaml; DCLM baselines/mappers/filters/content_filters.py with
baselines_configs/refinedweb.yaml (whose words come from `uniseg`, ours from spaCy's rules).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import median
from typing import ClassVar, Literal

from data.clean.step import Phase, Rule, at_least, at_most, judge, ratio
from data.document import Document, Drop
from data.features import Features

VERSION = 1
Variant = Literal["datatrove", "dolma", "dclm"]

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")  # Gopher, A.1.1


@dataclass(frozen=True, kw_only=True)
class GopherQuality:
    """Drop what is no natural text by its words, symbols, bullets, ellipses and stop words.

    stop_words: of the language that is looked for; at least `min_stop_words` of them must occur.
    """

    variant: Variant = "datatrove"
    min_words: int = 50
    max_words: int = 100_000
    min_word_length: float = 3.0
    max_word_length: float = 10.0
    max_symbol_ratio: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alphabetic_words: float = 0.8
    min_stop_words: int = 2
    stop_words: tuple[str, ...] = STOP_WORDS

    name: ClassVar[str] = "gopher_quality"
    phase: ClassVar[Phase] = "clean"

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """What is asked of a text, in order."""
        count, length = _WORD_MEASURES[self.variant]
        stops = partial(_stop_words, variant=self.variant, stops=frozenset(self.stop_words))
        return (
            at_least("too_few_words", count, self.min_words),
            at_most("too_many_words", count, self.max_words),
            at_least("short_words", length, self.min_word_length),
            at_most("long_words", length, self.max_word_length),
            *(at_most(reason, measure, self.max_symbol_ratio) for reason, measure in _SYMBOLS[self.variant]),
            at_most("too_many_bullets", partial(_bullets, marks=_BULLETS[self.variant]), self.max_bullet_lines),
            at_most("too_many_ellipsis_lines", _ELLIPSIS_LINES[self.variant], self.max_ellipsis_lines),
            at_least("few_alphabetic_words", _ALPHABETIC[self.variant], self.min_alphabetic_words),
            at_least("few_stop_words", stops, self.min_stop_words),
        )

    def __call__(self, document: Document, features: Features) -> Document | Drop:
        return judge(self.rules, features) or document


# Quality: words and their lengths.


def _content_words(features: Features) -> int:
    return len(features.english.words) - len(features.symbols)


def _mean_content_length(features: Features) -> float:
    return ratio(features.english.char_count - sum(map(len, features.symbols)), _content_words(features))


def _spaced_words(features: Features) -> int:
    return len(features.chunks)


def _median_spaced_length(features: Features) -> float:
    return float(median(map(len, features.chunks))) if features.chunks else 0.0


def _mean_spaced_length(features: Features) -> float:
    return ratio(features.spaced.char_count, len(features.chunks))


_WORD_MEASURES: dict[str, tuple[Callable[[Features], float], Callable[[Features], float]]] = {
    "datatrove": (_content_words, _mean_content_length),
    "dolma": (_spaced_words, _median_spaced_length),
    "dclm": (_content_words, _mean_spaced_length),
}

# Quality: symbols, bullets, ellipses, letters, stop words.


def _hashes(features: Features) -> float:
    return ratio(features.text.count("#"), len(features.english.words))


def _ellipses(features: Features) -> float:
    return ratio(features.text.count("...") + features.text.count("…"), len(features.english.words))


def _symbol_words(features: Features) -> float:
    return ratio(sum("#" in word or "…" in word for word in features.chunks), len(features.chunks))


def _all_symbols(features: Features) -> float:
    text = features.text
    return ratio(sum(map(text.count, ("#", "...", ". . .", "…"))), len(features.chunks))


_SYMBOLS: dict[str, tuple[tuple[str, Callable[[Features], float]], ...]] = {
    "datatrove": (("too_many_hashes", _hashes), ("too_many_ellipses", _ellipses)),
    "dolma": (("too_many_symbols", _symbol_words),),
    "dclm": (("too_many_symbols", _all_symbols),),
}
_BULLETS = {"datatrove": ("•", "-"), "dolma": ("*", "-"), "dclm": ("•", "-", "*", "●")}


def _bullets(features: Features, marks: tuple[str, ...]) -> float:
    if not any(mark in features.text for mark in marks):
        return 0.0
    return ratio(len([line for line in features.lines if line.lstrip().startswith(marks)]), len(features.lines))


def _ellipsis_lines(features: Features) -> float:
    if "..." not in features.text and "…" not in features.text:
        return 0.0
    return ratio(sum(line.rstrip().endswith(("...", "…")) for line in features.lines), len(features.lines))


def _one_character_ellipsis_lines(features: Features) -> float:
    lines = features.text.split("\n")
    return ratio(sum(line.endswith("…") for line in lines), len(lines))


def _any_ellipsis_lines(features: Features) -> float:
    lines = features.filled_lines
    return ratio(sum(line.endswith(("...", ". . .", "…")) for line in lines), len(lines))


_ELLIPSIS_LINES: dict[str, Callable[[Features], float]] = {
    "datatrove": _ellipsis_lines,
    "dolma": _one_character_ellipsis_lines,
    "dclm": _any_ellipsis_lines,
}


def _alphabetic_english(features: Features) -> float:
    return ratio(features.alphabetic_words, len(features.english.words))


def _alphabetic_spaced(features: Features) -> float:
    return ratio(features.alphabetic_chunks, len(features.chunks))


_ALPHABETIC: dict[str, Callable[[Features], float]] = {
    "datatrove": _alphabetic_english,
    "dolma": _alphabetic_spaced,
    "dclm": _alphabetic_spaced,
}


def _stop_words(features: Features, variant: Variant, stops: frozenset[str]) -> int:
    if variant == "datatrove":
        return len(stops.intersection(features.english.words))
    if variant == "dolma":
        return sum(word in stops for word in features.chunks)
    return sum(word in stops for word in features.lower.split())
