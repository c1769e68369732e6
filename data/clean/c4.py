"""The rules of C4 (Raffel et al. 2020, "T5", section 2.2), in named variants: lines are removed, some pages dropped.

One name, three filters:

    variant      words a line  sentences a page  end marks    "..."    javascript       page length
    "tfds"       5             3                 . ? ! "      refused  drops the line   <= 190,000
    "datatrove"  3             5                 . ? ! " '    refused  drops the line   any
    "dolma"      3             any               . ? ! "      fine     drops the page   any

All drop pages with "{" or "lorem ipsum", but only "dolma" looks for these in lines that another rule removes. "tfds" is the
published code (tensorflow_datasets, text/c4_utils.py); "datatrove" (0.10, filters/c4_filters.py) swapped the two numbers,
as the paper's wording does; "dolma" is taggers/c4.py with configs/c4-replication/mixer.yaml. "tfds" counts words after
citations are removed, "datatrove" before. "tfds" splits sentences with Punkt; here spaCy's rules do.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar, Literal

from data.clean.step import Phase, note_changes
from data.document import Document, Drop
from data.english import count_sentences
from data.features import Features

VERSION = 1
CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
POLICY_PHRASES = (  # c4_utils.py, _POLICY_SUBSTRINGS
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
_WORDS_A_LINE = {"tfds": 5, "datatrove": 3, "dolma": 3}
_SENTENCES_A_PAGE = {"tfds": 3, "datatrove": 5, "dolma": 0}
_END_MARKS = {"tfds": (".", "?", "!", '"'), "datatrove": (".", "?", "!", '"', "'"), "dolma": (".", "?", "!", '"')}
_MAX_PAGE_CHARS = 190_000  # characters: c4_utils.py, is_valid_length


@dataclass(frozen=True, kw_only=True)
class C4:
    """Remove lines that are no sentence, then drop pages that have too few sentences left.

    end_marks: whether lines must end in an end mark (FineWeb leaves this rule out).
    min_words_per_line, min_sentences: other numbers than the variant's.
    """

    variant: Literal["tfds", "datatrove", "dolma"] = "tfds"
    end_marks: bool = True
    min_words_per_line: int | None = None
    min_sentences: int | None = None
    max_word_length: int = 1000

    name: ClassVar[str] = "c4"
    phase: ClassVar[Phase] = "clean"

    def __call__(self, document: Document, features: Features) -> Document | Drop:
        if self.variant == "tfds" and len(document.text) > _MAX_PAGE_CHARS:
            return Drop("too_long", len(document.text), _MAX_PAGE_CHARS)
        if self.variant == "dolma":
            for reason, mark in (("curly_bracket", "{"), ("lorem_ipsum", "lorem ipsum"), ("javascript", "javascript")):
                if mark in features.lower:
                    return Drop(reason, features.lower.count(mark), 0)
        fewest = _SENTENCES_A_PAGE[self.variant] if self.min_sentences is None else self.min_sentences
        removed: Counter[str] = Counter()
        kept: list[str] = []
        sentences = 0
        suspects = _Suspects(features, self.max_word_length)
        for raw in features.lines:
            line = raw.strip()
            verdict = self._line(line, suspects)
            if isinstance(verdict, Drop):
                return verdict
            if isinstance(verdict, _Removed):
                removed[verdict.why] += 1
                continue
            if sentences < fewest:
                sentences += count_sentences(verdict.split())
            kept.append(verdict)
        if sentences < fewest or not kept:
            return Drop("too_few_sentences", sentences, fewest or 1)
        text = "\n".join(kept).strip()
        return note_changes(document.with_text(text), self.name, dict(removed))

    def _line(self, line: str, suspects: _Suspects) -> str | _Removed | Drop:
        words = line.split()
        if suspects.long_words and any(len(word) > self.max_word_length for word in words):
            return _Removed("long_word")
        if suspects.citations and "[" in line:
            line = CITATION.sub("", line)
            if self.variant == "tfds":
                words = line.split()
        if self.end_marks and (
            not line.endswith(_END_MARKS[self.variant]) or (self.variant != "dolma" and line.endswith("..."))
        ):
            return _Removed("no_end_mark")
        fewest = _WORDS_A_LINE[self.variant] if self.min_words_per_line is None else self.min_words_per_line
        if len(words) < fewest:
            return _Removed("few_words")
        if not suspects.phrases or self.variant == "dolma":
            return line
        low = line.lower()
        if "lorem ipsum" in low:
            return Drop("lorem_ipsum", 1, 0)
        if "javascript" in low:
            return _Removed("javascript")
        if "{" in line:
            return Drop("curly_bracket", 1, 0)
        if any(phrase in low for phrase in POLICY_PHRASES):
            return _Removed("policy")
        return line


@dataclass(frozen=True, slots=True)
class _Removed:
    why: str


class _Suspects:
    """What a page may hold at all, looked up once, so that most lines need no search of their own."""

    def __init__(self, features: Features, max_word_length: int) -> None:
        text, low = features.text, features.lower
        self.long_words = any(len(chunk) > max_word_length for chunk in features.chunks)
        self.citations = "[" in text
        self.phrases = "{" in text or any(phrase in low for phrase in ("lorem ipsum", "javascript", *POLICY_PHRASES))
