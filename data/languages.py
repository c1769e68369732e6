"""The language of a document and the script of a character, for sampling, weighting and reporting by them."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from data.document import Document

UNKNOWN = "und"  # BCP 47: undetermined


def language_of(document: Document) -> str:
    """What the source declares (meta "language"), else what a cleaning step scored, else what a detector says."""
    declared = document.meta.get("language") or document.scores.get("language")
    if isinstance(declared, str) and declared:
        return declared
    from data.clean.language import Language  # the detector's model is read only where it is asked

    return Language().detect(document.text[:2000])[0]


@lru_cache(maxsize=1 << 16)
def script_of(character: str) -> str:
    """The first word of a character's Unicode name: LATIN, CJK, HANGUL; COMMON for what no script owns alone."""
    if not character.isalpha() and unicodedata.category(character)[0] != "M":
        return "COMMON"
    return unicodedata.name(character, "COMMON").split(" ")[0].split("-")[0]
