"""Personal data: found, replaced or counted, and recorded by kind and place, never by value."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Literal

from data.clean.pii_numbers import REGIONS, find_numbers
from data.clean.pii_text import Span, find_emails, find_ips, find_names, find_secrets
from data.clean.step import Phase
from data.document import Document, Drop
from data.features import Features

VERSION = 1
LIBRARIES = ("phonenumbers", "python-stdnum")

Action = Literal["placeholder", "pseudonym", "keep"]
# In the order of who wins where two overlap.
KINDS = ("private_key", "url_credentials", "api_key", "email", "iban", "card", "ip", "national_id", "phone", "person")
DEFAULT_KINDS = KINDS[:-1]
_DIGITS = frozenset("0123456789")


@dataclass(frozen=True, kw_only=True)
class PersonalData:
    """Find personal data and secrets and act on them by kind.

    kinds: what is looked for; add "person" for names that a title announces.
    action: "placeholder" writes [EMAIL]; "pseudonym" writes the same stand-in for the same value all over a dataset,
        derived with the secret in the environment variable `key_variable`; "keep" only records.
    actions: (kind, action) pairs where a kind needs another one.
    max_found: drop documents with more than this many, reason `too_much_personal_data` (dolma drops over 5).
    regions: countries whose phone numbers are known without a country code.

    meta["pii"] holds [kind, start, end] for each, places in the text as this step leaves it.
    """

    kinds: tuple[str, ...] = DEFAULT_KINDS
    action: Action = "placeholder"
    actions: tuple[tuple[str, Action], ...] = ()
    max_found: int | None = None
    regions: tuple[str, ...] = REGIONS
    key_variable: str = "SLUICE_PII_KEY"

    name: ClassVar[str] = "personal_data"
    phase: ClassVar[Phase] = "clean"

    def __post_init__(self) -> None:
        for kind in (*self.kinds, *(kind for kind, _ in self.actions)):
            if kind not in KINDS:
                raise ValueError(f"PersonalData: no kind {kind!r}; kinds are {', '.join(KINDS)}")

    def __call__(self, document: Document, features: Features) -> Document | Drop:
        spans = find_personal_data(document.text, self.kinds, self.regions)
        if not spans:
            return document
        if self.max_found is not None and len(spans) > self.max_found:
            return Drop("too_much_personal_data", len(spans), self.max_found)
        actions = dict(self.actions)
        text, places = _replaced(document.text, spans, [actions.get(s.kind, self.action) for s in spans], self._key)
        return replace(document, text=text, meta={**document.meta, "pii": [list(place) for place in places]})

    def _key(self) -> bytes:
        key = os.environ.get(self.key_variable)
        if not key:
            raise ValueError(
                f"PersonalData: pseudonyms need a secret; set the environment variable {self.key_variable}"
            )
        return key.encode()


def find_personal_data(
    text: str, kinds: Iterable[str] = DEFAULT_KINDS, regions: tuple[str, ...] = REGIONS
) -> list[Span]:
    """All spans in order of place; where two overlap, the kind that comes first in KINDS stays."""
    wanted = frozenset(kinds)
    found: list[Span] = []
    if "@" in text and "email" in wanted:
        found.extend(find_emails(text))
    if "." in text or ":" in text:
        found.extend(find_ips(text) if "ip" in wanted else ())
    found.extend(span for span in find_secrets(text) if span.kind in wanted)
    if not _DIGITS.isdisjoint(text):
        found.extend(find_numbers(text, wanted, regions))
    if "person" in wanted:
        found.extend(find_names(text))
    return _without_overlaps(found)


def redact(text: str) -> str:
    """The text with all personal data as placeholders: for what reports and dropped documents show."""
    spans = find_personal_data(text)
    return _replaced(text, spans, ["placeholder"] * len(spans), bytes)[0] if spans else text


def _without_overlaps(spans: list[Span]) -> list[Span]:
    if len(spans) < 2:
        return spans
    chosen: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start, KINDS.index(span.kind), -span.end)):
        while chosen and span.start < chosen[-1].end:
            if KINDS.index(span.kind) >= KINDS.index(chosen[-1].kind):
                break
            chosen.pop()
        else:
            chosen.append(span)
    return chosen


def _replaced(text: str, spans: list[Span], actions: list[Action], key) -> tuple[str, list[Span]]:  # type: ignore[no-untyped-def]
    """(the new text, the spans in it)."""
    parts: list[str] = []
    places: list[Span] = []
    last = length = 0
    for span, action in zip(spans, actions):
        value = text[span.start : span.end]
        if action == "pseudonym":
            value = _pseudonym(span.kind, value, key())
        elif action == "placeholder":
            value = f"[{span.kind.upper()}]"
        parts += (text[last : span.start], value)
        start = length + span.start - last
        length = start + len(value)
        places.append(Span(span.kind, start, length))
        last = span.end
    return "".join((*parts, text[last:])), places


@lru_cache(maxsize=65536)
def _pseudonym(kind: str, value: str, key: bytes) -> str:
    """A stand-in that looks like its kind but can belong to nobody: the ranges that standards reserve for examples."""
    same = "".join(c for c in value.casefold() if c.isalnum() or c in "@.:")
    digest = hashlib.blake2b(f"{kind}:{same}".encode(), key=hashlib.sha256(key).digest(), digest_size=8).digest()
    number = int.from_bytes(digest, "big")
    if kind == "email":
        return f"person-{number % 16**8:08x}@example.com"  # RFC 2606
    if kind == "ip" and ":" not in value:
        return f"192.0.2.{number % 254 + 1}" if number % 2 else f"198.51.100.{number // 2 % 254 + 1}"  # RFC 5737
    if kind == "ip":
        return f"2001:db8::{number % 65536:x}:{number // 65536 % 65536:x}"  # RFC 3849
    if kind == "phone":
        return f"+1-{200 + number % 800:03d}-555-{100 + number // 800 % 100:04d}"  # 555-0100 to 555-0199: for fiction
    return f"[{kind.upper()}-{number % 16**8:08x}]"
