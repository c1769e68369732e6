"""Dates and languages as files state them, in one form for all sources: ISO 8601 and ISO 639-1."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

TWITTER = "%a %b %d %H:%M:%S %z %Y"
LONG_DATES = ("%B %d, %Y", "%B, %Y", "%B %Y", TWITTER)
TAG = re.compile(r"([A-Za-z]{2,3})(?:[-_][A-Za-z0-9]{2,8})*")
# ISO 639-2, both of its forms, of the languages in which papers and books are found
TWO_LETTERS = {
    "eng": "en", "fre": "fr", "fra": "fr", "ger": "de", "deu": "de", "spa": "es", "ita": "it", "por": "pt", "rus": "ru",
    "chi": "zh", "zho": "zh", "jpn": "ja", "kor": "ko", "dut": "nl", "nld": "nl", "pol": "pl", "cze": "cs", "ces": "cs",
    "swe": "sv", "dan": "da", "nor": "no", "fin": "fi", "hun": "hu", "tur": "tr", "ukr": "uk", "heb": "he", "ara": "ar",
    "gre": "el", "ell": "el", "rum": "ro", "ron": "ro", "bul": "bg", "hrv": "hr", "srp": "sr", "slo": "sk", "slk": "sk",
    "slv": "sl", "cat": "ca", "vie": "vi", "tha": "th", "ind": "id", "per": "fa", "fas": "fa", "hin": "hi", "lat": "la",
    "epo": "eo", "afr": "af", "ice": "is", "isl": "is", "est": "et", "lav": "lv", "lit": "lt", "geo": "ka", "kat": "ka",
}  # fmt: skip


def language_code(stated: str | None) -> str | None:
    """ "en" of "eng", "EN" and "en-US"; what is no language tag as it stands."""
    found = TAG.fullmatch(stated.strip()) if stated else None
    if found is None:
        return stated
    code = found.group(1).lower()
    return TWO_LETTERS.get(code, code)


def iso_date(stated: str | int | float) -> str:
    """A date of mail, of Twitter, of a book's header, or seconds since 1970, as ISO 8601; any other as it stands."""
    if isinstance(stated, int | float):
        try:
            return datetime.fromtimestamp(stated, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        except (ValueError, OverflowError, OSError):  # beyond the year 9999
            return str(stated)
    for form in LONG_DATES:
        try:
            found = datetime.strptime(stated.strip(), form)
        except ValueError:
            continue
        return found.isoformat() if form == TWITTER else found.strftime("%Y-%m-%d" if "%d" in form else "%Y-%m")
    try:
        return parsedate_to_datetime(stated).isoformat()
    except (ValueError, TypeError, IndexError, OverflowError):
        return stated
