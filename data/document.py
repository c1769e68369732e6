"""Document and Drop: the two records that every data stage passes on.

A document enters a stage and leaves it as a `Document` (perhaps changed) or as a `Drop` that says why it was
removed. Nothing else happens to it: kept + dropped = read + created, at every stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Number = int | float


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One raw text with its provenance.

    id: unique in a dataset, and the same on every run and machine.
    text: the content, as str.
    source: the name of the configured source that it came from.
    meta: JSON values: where it came from (URL or path, offset), licence, language, date, title; `meta["group"]` names
        what must stay on one side of the held-out split (a package, a book, a host); `meta["split"]` is set by it.
    scores: numbers and labels that scoring stages computed (language, perplexity, quality, ...).
    """

    id: str
    text: str
    source: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)

    def with_text(self, text: str) -> Document:
        """The same document with another text; itself when the text is the same."""
        return self if text == self.text else replace(self, text=text)

    def with_meta(self, **values: Any) -> Document:
        """The same document with some meta values set."""
        return replace(self, meta={**self.meta, **values})

    def with_scores(self, **values: Any) -> Document:
        """The same document with some scores set."""
        return replace(self, scores={**self.scores, **values})


@dataclass(frozen=True, slots=True)
class Drop:
    """Why a document was removed.

    reason: a short snake_case name, counted in reports (`too_few_words`).
    value: what was measured; threshold: what was asked for; both None where there is nothing to compare.
    partner: the id of the document that this one repeats, where there is one.
    """

    reason: str
    value: Number | str | None = None
    threshold: Number | str | None = None
    partner: str | None = None


@dataclass(frozen=True, slots=True)
class Dropped:
    """A document together with the step that removed it and its reason: one row of `dropped/*.parquet`."""

    document: Document
    step: str
    drop: Drop
