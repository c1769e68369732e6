"""The rules of C4 (Raffel et al. 2020, "T5", section 2.2), in named variants: lines are removed, some pages dropped.

One name, three filters:

    variant      words a line  sentences a page  end marks    "..."    javascript       page length
    "tfds"       5             3                 . ? ! "      refused  drops the line   <= 190,000
    "datatrove"  3             5                 . ? ! " '    refused  drops the line   any
    "dolma"      3             any               . ? ! "      fine     drops the page   any

All drop pages with "{" or "lorem ipsum", but only "dolma" looks for these in lines that another rule removes. "tfds" is
the published code (tensorflow_datasets, text/c4_utils.py); "datatrove" (0.10, filters/c4_filters.py) swapped the two
numbers, as the paper's wording does; "dolma" is taggers/c4.py with configs/c4-replication/mixer.yaml. "tfds" counts
words after citations are removed, "datatrove" before. "tfds" splits sentences with Punkt; here spaCy's rules do.
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
_NUMBERS = {"tfds": (5, 3), "datatrove": (3, 5), "dolma": (3, 0)}  # words a line, sentences a page
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
        fewest_words, fewest = self._numbers
        marks = _END_MARKS[self.variant] if self.end_marks else ("",)
        ellipsis = "..." if self.end_marks and self.variant != "dolma" else None
        suspect = self._suspect(features)
        removed: Counter[str] = Counter()
        kept: list[str] = []
        sentences = 0
        for raw in features.lines:
            line = raw.strip()
            words = line.split(None, fewest_words)  # as many as matter, and the rest
            if suspect:
                if any(len(word) > self.max_word_length for word in line.split()):
                    removed["long_word"] += 1
                    continue
                line = CITATION.sub("", line)
                words = line.split(None, fewest_words) if self.variant == "tfds" else words
            if not line.endswith(marks) or (ellipsis and line.endswith(ellipsis)):
                removed["no_end_mark"] += 1
                continue
            if len(words) < fewest_words:
                removed["few_words"] += 1
                continue
            if suspect and self.variant != "dolma":
                verdict = _phrases(line)
                if isinstance(verdict, Drop):
                    return verdict
                if verdict:
                    removed[verdict] += 1
                    continue
            if sentences < fewest:
                sentences += count_sentences(line.split(), fewest - sentences)
            kept.append(line)
        if sentences < fewest or not kept:
            return Drop("too_few_sentences", sentences, fewest or 1)
        return note_changes(document, self.name, dict(removed), "\n".join(kept).strip())

    @property
    def _numbers(self) -> tuple[int, int]:
        """(words a line, sentences a page)."""
        words, sentences = _NUMBERS[self.variant]
        return (
            words if self.min_words_per_line is None else self.min_words_per_line,
            sentences if self.min_sentences is None else self.min_sentences,
        )

    def _suspect(self, features: Features) -> bool:
        """Whether the page holds anything that needs a search in every line; most pages hold nothing of it."""
        text, low = features.text, features.lower
        return (
            "[" in text
            or "{" in text
            or "lorem ipsum" in low
            or "javascript" in low
            or ("use" in low and any(phrase in low for phrase in POLICY_PHRASES))
            or ("policy" in low and any(phrase in low for phrase in POLICY_PHRASES))
            or max(map(len, features.chunks), default=0) > self.max_word_length
        )


def _phrases(line: str) -> Drop | str | None:
    """A drop of the page, the reason to remove the line, or None."""
    low = line.lower()
    if "lorem ipsum" in low:
        return Drop("lorem_ipsum", low.count("lorem ipsum"), 0)
    if "javascript" in low:
        return "javascript"
    if "{" in line:
        return Drop("curly_bracket", line.count("{"), 0)
    return "policy" if any(phrase in low for phrase in POLICY_PHRASES) else None
