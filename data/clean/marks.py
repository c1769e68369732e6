"""Which part of a text a drop is about: what reports mark in their examples."""

from __future__ import annotations

import re
from collections.abc import Callable

from data.clean.basic import _CONTROLS
from data.clean.c4 import POLICY_PHRASES
from data.clean.code import _GENERATED
from data.clean.toxicity import listed_words
from data.document import Drop
from data.features import Features, Words

Marks = list[tuple[int, int]]
_MOST = 200  # marks in one text: more are not read


def offending(text: str, drop: Drop) -> Marks:
    """Spans of `text`, in order and apart from each other, that made a step drop it; empty where all of it did."""
    maker = _MAKERS.get(drop.reason)
    if maker is None:
        match = re.fullmatch(r"(top|duplicate)_(\d+)_grams?", drop.reason)
        if match is None:
            return []
        return _apart(_ngrams(text, int(match.group(2)), only_top=match.group(1) == "top"))
    return _apart(maker(text))


def _apart(spans: Marks) -> Marks:
    out: Marks = []
    for start, end in sorted(spans)[: 10 * _MOST]:
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out[:_MOST]


def _pattern(pattern: str, flags: int = re.IGNORECASE) -> Callable[[str], Marks]:
    compiled = re.compile(pattern, flags)
    return lambda text: [match.span() for match in compiled.finditer(text)]


def _lines(wanted: Callable[[str], bool]) -> Callable[[str], Marks]:
    def find(text: str) -> Marks:
        spans, place = [], 0
        for line in text.split("\n"):
            if line.strip() and wanted(line):
                spans.append((place, place + len(line)))
            place += len(line) + 1
        return spans

    return find


def _repeats(separator: str) -> Callable[[str], Marks]:
    """Pieces that occurred before."""

    def find(text: str) -> Marks:
        spans, place = [], 0
        seen: set[str] = set()
        for piece in text.split(separator):
            if piece.strip() and piece in seen:
                spans.append((place, place + len(piece)))
            seen.add(piece)
            place += len(piece) + len(separator)
        return spans

    return find


def _ngrams(text: str, n: int, only_top: bool) -> Marks:
    words = list(re.finditer(r"\w+|[^\w\s]", text))
    groups = Words([word.group() for word in words]).repeated(n)
    if only_top and groups:
        groups = [max(groups, key=len)]
    return [(words[place].start(), words[place + n - 1].end()) for places in groups for place in places]


def _toxic(text: str) -> Marks:
    listed = listed_words()
    return [match.span() for match in re.finditer(r"\b\w\w+\b", text) if match.group().lower() in listed]


_MAKERS: dict[str, Callable[[str], Marks]] = {
    "curly_bracket": _pattern(r"\{"),
    "lorem_ipsum": _pattern("lorem ipsum"),
    "javascript": _pattern("javascript"),
    "policy": _pattern("|".join(POLICY_PHRASES)),
    "generated": lambda text: [match.span() for match in _GENERATED.finditer(text[:1500])],
    "toxic_words": _toxic,
    "too_many_hashes": _pattern("#"),
    "too_many_ellipses": _pattern(r"\.\.\.|…"),
    "too_many_symbols": _pattern(r"#|\.\.\.|…"),
    "too_many_bullets": _lines(lambda line: line.lstrip().startswith(("•", "-", "*", "●"))),
    "too_many_ellipsis_lines": _lines(lambda line: line.rstrip().endswith(("...", "…"))),
    "few_alphabetic_words": _pattern(r"(?<!\S)[\W\d_]+(?!\S)"),
    "low_alphabetic_ratio": _pattern(r"[^\w\s]+|\d+"),
    "long_words": lambda text: [m.span() for m in re.finditer(r"\S+", text) if len(m.group()) > 15],
    "duplicate_lines": _repeats("\n"),
    "duplicate_line_chars": _repeats("\n"),
    "duplicate_paragraphs": _repeats("\n\n"),
    "duplicate_paragraph_chars": _repeats("\n\n"),
    "few_ended_lines": _lines(lambda line: line[-1].isalnum()),
    "too_many_short_lines": _lines(lambda line: len(line) <= 30),
    "minified": _lines(lambda line: len(line) > 200),
    "long_line": _lines(lambda line: len(line) > 1000),
    "data_like": _pattern(r"\d[\d.,\s]{8,}"),
    "too_much_personal_data": _pattern(
        r"\[(?:EMAIL|PHONE|IP|CARD|IBAN|NATIONAL_ID|API_KEY|PRIVATE_KEY|URL_CREDENTIALS)\]"
    ),
    "controls": lambda text: [match.span() for match in _CONTROLS.finditer(text)],
}


def described(features: Features) -> str:
    """Size of a text in a few words."""
    return f"{len(features.text):,} characters, {len(features.chunks):,} words, {len(features.lines):,} lines"
