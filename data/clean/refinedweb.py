"""The line-wise corrections of RefinedWeb (Penedo et al. 2023, section 3.2 and appendix G.2) as DCLM reproduced them.

Lines that are mostly upper case, numbers, counters ("3 likes") or single words go; phrases of shops and logins are
cut from short lines; a page that lost more than 5 % of its words is dropped. Source: DCLM
baselines/mappers/modifiers.py and baselines_configs/refinedweb.yaml, which was rebuilt from the paper's examples.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from data.clean.step import Phase, note_changes, ratio
from data.document import Document, Drop
from data.features import Features

VERSION = 1
_COUNTER = re.compile(
    r"^\W*\d(?:,|\.|\d)*[kmb]?\s+(?:likes|shares|comments|retweets|reposts|quotes|bookmarks|upvotes|downvotes|downloads"
    r"|views|followers)\W*$"
)
_PHRASES = (
    re.compile(r"\s?items in cart", re.IGNORECASE),
    re.compile(r"\s?Read more\.\.\.$", re.IGNORECASE),
    re.compile(r"^Sign-in\s?", re.IGNORECASE),
)


@dataclass(frozen=True, kw_only=True)
class RefinedWebLines:
    """Remove lines that are no text, and drop pages that were little else."""

    max_uppercase: float = 0.5
    max_numeric: float = 0.999999  # all characters are digits
    min_words_per_line: int = 2
    max_phrase_line_words: int = 10
    max_removed_words: float = 0.05

    name: ClassVar[str] = "refinedweb_lines"
    phase: ClassVar[Phase] = "clean"

    def __call__(self, document: Document, features: Features) -> Document | Drop:
        removed: Counter[str] = Counter()
        kept: list[str] = []
        for line in document.text.split("\n"):
            reason = self._reason(line) if line else None
            if reason:
                removed[reason] += 1
                continue
            shorter = self._without_phrases(line)
            if shorter != line:
                removed["phrase"] += 1
                if not shorter.strip():
                    continue
            kept.append(shorter)
        text = "\n".join(kept).strip() if removed else document.text
        before = len(features.chunks)
        share = ratio(before - len(text.split()), before)
        if not text or share > self.max_removed_words:
            return Drop("too_many_words_removed", round(share, 4), self.max_removed_words)
        return note_changes(document, self.name, dict(removed), text)

    def _reason(self, line: str) -> str | None:
        if not line.islower() and sum(map(str.isupper, line)) / len(line) > self.max_uppercase:
            return "uppercase"
        if line[0].isdigit() and sum(map(str.isdigit, line)) / len(line) > self.max_numeric:
            return "numeric"
        if len(line) < 200 and any(map(str.isdigit, line)) and _COUNTER.search(line.lower()):
            return "counter"
        return "few_words" if len(line.split(None, self.min_words_per_line)) < self.min_words_per_line else None

    def _without_phrases(self, line: str) -> str:
        if len(line.split(None, self.max_phrase_line_words)) > self.max_phrase_line_words:
            return line
        for phrase in _PHRASES:
            line = phrase.sub("", line)
        return line
