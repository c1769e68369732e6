"""Which of the old one-byte encodings a text of the Latin alphabet is in.

Detection by character statistics (charset-normalizer) takes Spanish, French or Swedish for Polish or Lithuanian every
other time: the bytes are letters in all of these encodings. But few of those letters are ones of the same language.
"""

from __future__ import annotations

from collections import Counter

# Letters beyond ASCII that a language writes, lower case, by the encoding in which its texts are found. Where two fit
# equally well the first is taken: browsers' own order of likelihood.
ALPHABETS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("cp1252", ("àâæçéèêëîïôœùûüÿ", "äöüß", "áéíóúüñ", "ãõáâàçéêíóôú", "àèéìíòóù", "áéëèïóöü", "åäöé", "æøåéó",
                "áæðéíóöúýþ", "àçéèíïóòúü")),
    ("cp1250", ("ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áäčďéíĺľňóôŕšťúýž", "áéíóöőúüű", "ăâîşţ", "čćđšž")),
    ("iso8859-2", ("ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áäčďéíĺľňóôŕšťúýž", "áéíóöőúüű", "ăâîşţ", "čćđšž")),
    ("cp1254", ("çğıöşüâîûi̇",)),
    ("cp1257", ("ąčęėįšųūž", "āčēģīķļņšūž", "äõöüšž")),
)  # fmt: skip
MARKS = frozenset("\xa0«»“”„‘’‚‹›–—…•·§°©®™€£¡¿ºª´×½¼¾²³†")  # of any language: they speak for none
MAX_SHARE = 0.3  # of bytes beyond ASCII in texts of these alphabets: Polish has 0.08, Cyrillic and Greek 0.8
ENOUGH = 0.9  # of the characters beyond ASCII: names and words of other languages are the rest


def latin_encoding(data: bytes) -> str | None:
    """The encoding in which the characters beyond ASCII are one language's own; None where none is."""
    high = Counter(data.translate(None, bytes(range(128))))
    if not high or sum(high.values()) > MAX_SHARE * len(data):
        return None
    found: tuple[float, str | None] = (0.0, None)
    for encoding, alphabets in ALPHABETS:
        known = {code: bytes([code]).decode(encoding, "replace").lower() for code in high}
        marks = sum(count for code, count in high.items() if known[code] in MARKS)
        for letters in alphabets:
            fits = marks + sum(count for code, count in high.items() if known[code] in letters)
            found = max(found, (fits / high.total(), encoding), key=lambda pair: pair[0])
    return found[1] if found[0] >= ENOUGH else None
