"""How one HTML page becomes text: trafilatura first, then jusText, then all visible text. Runs in a worker process.

Called only by `data.sources.extract_worker`, which holds the time and memory limits; see `data.sources.extract`.
"""

from __future__ import annotations

import html
import re
from typing import Any

from w3lib.encoding import html_to_unicode

from data.sources.charset import latin_encoding

METHODS = ("trafilatura", "justext", "plain")
FAVOUR = ("precision", "balanced", "recall")
DETECT_BYTES = 1 << 16  # bytes that charset detection looks at
LANGUAGE_ATTRIBUTE = re.compile(
    r"<html[^>]{0,2000}?\s(?:xml:)?lang\s*=\s*[\"']?([A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{2,8})*)", re.I
)
LANGUAGE_META = re.compile(
    r"<meta[^>]{0,300}?(?:content-language|og:locale|dc\.language|name=[\"']language)[\"'][^>]{0,300}?content=[\"']([A-Za-z_-]{2,10})",
    re.I,
)
TITLE = re.compile(r"<title[^>]{0,300}>([^<]{1,1000})", re.I)
JUSTEXT_LANGUAGES = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese",
    "nl": "Dutch", "pl": "Polish", "ru": "Russian", "cs": "Czech", "sv": "Swedish", "da": "Danish", "fi": "Finnish",
    "eo": "Esperanto", "tr": "Turkish", "uk": "Ukrainian", "el": "Greek", "hu": "Hungarian", "ro": "Romanian",
}  # fmt: skip


def decode_page(body: bytes, content_type: str) -> tuple[str, str]:
    """(text, encoding): byte order mark, HTTP header, meta tag, valid UTF-8, then detection, in the browsers' order."""
    encoding, text = html_to_unicode(content_type or None, body, auto_detect_fun=_detect, default_encoding="utf-8")
    return text, encoding


def _detect(body: bytes) -> str | None:
    sample = body[:DETECT_BYTES]
    try:
        sample[:-4].decode("utf-8") if len(body) > DETECT_BYTES else sample.decode("utf-8")
        return "utf-8"
    except UnicodeDecodeError:
        pass
    if (western := latin_encoding(sample)) is not None:
        return western
    from charset_normalizer import from_bytes

    best = from_bytes(sample, steps=5, chunk_size=512, threshold=0.4).best()
    return best.encoding if best is not None else "cp1252"


def language_hint(text: str) -> str | None:
    """The language that the page claims, as a lower-case BCP 47 tag; a claim, not a measurement."""
    found = LANGUAGE_ATTRIBUTE.search(text[:20000]) or LANGUAGE_META.search(text[:50000])
    return found.group(1).replace("_", "-").lower() if found else None


def extract_page(body: bytes, content_type: str, url: str, method: str, favour: str) -> dict[str, Any]:
    """{"text", "meta"} by one method; text "" where the method finds nothing."""
    text, encoding = decode_page(body, content_type)
    meta: dict[str, Any] = {"encoding": encoding, "language_hint": language_hint(text)}
    if method == "trafilatura":
        found, more = _trafilatura(text, url, favour)
    elif method == "justext":
        found, more = _justext(text, meta["language_hint"]), _title(text)
    else:
        found, more = _plain(text), _title(text)
    return {"text": found, "meta": {**meta, **more}}


def _title(text: str) -> dict[str, Any]:
    found = TITLE.search(text)
    return {"title": " ".join(html.unescape(found.group(1)).split())} if found else {}


def _trafilatura(text: str, url: str, favour: str) -> tuple[str, dict[str, Any]]:
    from trafilatura import bare_extraction
    from trafilatura.xml import xmltotxt

    page = bare_extraction(
        text,
        url=url or None,
        with_metadata=True,
        include_comments=False,
        include_formatting=True,
        output_format="python",
        favor_precision=favour == "precision",
        favor_recall=favour == "recall",
    )
    if page is None or isinstance(page, dict) or page.body is None:
        return "", {}
    for head in page.body.iter("head"):
        level = (head.get("rend") or "h2")[1:2]
        prefix = "#" * (int(level) if level.isdigit() and 1 <= int(level) <= 6 else 2) + " "
        if head.text and head.text.strip():
            head.text = prefix + head.text.lstrip()
        elif len(head) and head[0].text:
            head[0].text = prefix + head[0].text.lstrip()
    meta = {
        "title": page.title,
        "author": page.author,
        "date": page.date,
        "site": page.sitename,
        "licence": page.license,
        "tags": page.tags or None,
        "categories": page.categories or None,
    }
    return xmltotxt(page.body, False).strip(), {key: value for key, value in meta.items() if value}


def _justext(text: str, language: str | None) -> str:
    import justext

    known = JUSTEXT_LANGUAGES.get((language or "en")[:2])
    words = justext.get_stoplist(known) if known in justext.get_stoplists() else frozenset()
    paragraphs = justext.justext(text, words) if words else justext.justext(
        text, words, stopwords_low=0, stopwords_high=0, length_low=70
    )  # no stop words known: length and link density decide  # fmt: skip
    return "\n\n".join(paragraph.text for paragraph in paragraphs if not paragraph.is_boilerplate)


def _plain(text: str) -> str:
    from trafilatura import html2txt

    return html2txt(text).strip()
