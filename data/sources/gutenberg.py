"""Project Gutenberg texts: header and licence tail removed, what they say kept in the meta, chapters marked.

    GutenbergSource(name="books", paths=("gutenberg/",))

Books3 is not supported: it is made of books under copyright, copied without a licence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from data.document import Document, Dropped
from data.sources.base import FileSource
from data.sources.stated import iso_date
from data.sources.text_files import decode_text

MARK = r"(?:THIS|THE) PROJECT GUTENBERG E-?(?:BOOK|TEXT)"
START = re.compile(rf"^\*\*\*\s*START OF {MARK}.*?\*\*\*[ \t]*$", re.M | re.S | re.I)
END = re.compile(rf"^\s*\*\*\*\s*END OF {MARK}|^End of (?:the |this )?Project Gutenberg", re.M | re.I)
OLD_START = re.compile(r"^\*END\*?\s*THE SMALL PRINT!.*$|^\*\*?\*?END THE SMALL PRINT.*$", re.M | re.I)
OLD_END = re.compile(r"^(?:\*\*\*)?\s*END OF (?:THE |THIS )?PROJECT GUTENBERG", re.M | re.I)
FIELD = re.compile(
    r"^(Title|Author|Translator|Editor|Illustrator|Language|Release [Dd]ate|Posting [Dd]ate|Character set encoding):"
    r"[ \t]*(.*(?:\n[ \t]+\S.*)*)",
    re.M,
)
NUMBER = re.compile(r"\[E(?:Book|text)\s*#\s*(\d+)\]", re.I)
COPYRIGHTED = re.compile(r"This is a COPYRIGHTED Project Gutenberg", re.I)
CREDITS = re.compile(
    r"\A\s*(?:(?:Produced|Transcribed|E-?text prepared|This etext was (?:prepared|produced)) by [^\n]*(?:\n[^\n]+)*"
    r"\n\s*\n)+",
    re.I,
)
CHAPTER = re.compile(
    r"^[ \t]*((?:CHAPTER|Chapter|BOOK|Book|PART|Part|ACT|SCENE|CANTO|LETTER|Letter|STAVE|VOLUME)[ \t]+"
    r"(?:[IVXLCDM]+|\d+|[A-Z][A-Za-z-]+)\b[^\n]{0,80})$",
    re.M,
)
SEARCH_CHARS = 60_000  # characters at either end in which the marks are looked for
LANGUAGES = {"english": "en", "french": "fr", "german": "de", "spanish": "es", "italian": "it", "dutch": "nl",
             "finnish": "fi", "portuguese": "pt", "latin": "la", "esperanto": "eo", "chinese": "zh", "greek": "el",
             "swedish": "sv", "hungarian": "hu", "tagalog": "tl", "danish": "da", "catalan": "ca"}  # fmt: skip


def split_book(text: str) -> tuple[str, dict[str, Any]]:
    """(the book itself, meta). ValueError where it has no start mark: then it is no Gutenberg text."""
    start = START.search(text, 0, SEARCH_CHARS) or OLD_START.search(text, 0, SEARCH_CHARS)
    if start is None:
        raise ValueError("no line *** START OF THIS PROJECT GUTENBERG EBOOK ***")
    header, body = text[: start.start()], text[start.end() :]
    end = END.search(body) or OLD_END.search(body)
    body = body[: end.start()] if end else body
    meta: dict[str, Any] = {}
    for name, value in FIELD.findall(header):
        meta.setdefault(name.lower().replace(" ", "_"), " ".join(value.split()))
    language = meta.get("language", "")
    meta["language"] = LANGUAGES.get(language.split(",")[0].strip().lower(), language or None)
    posted = meta.pop("posting_date", None)
    date = re.sub(r"\s*\[.*", "", meta.pop("release_date", posted) or "")  # [eBook #11], and when it was updated
    meta["date"] = iso_date(date) or None
    number = NUMBER.search(header)
    meta["gutenberg_id"] = int(number.group(1)) if number else None
    meta["licence"] = "Copyrighted-Gutenberg" if COPYRIGHTED.search(header) else "Public-Domain-US"
    meta["has_end_mark"] = end is not None
    return CREDITS.sub("", body).strip("\n"), meta


def mark_chapters(text: str) -> tuple[str, list[str]]:
    """(text with chapter lines as `## ` headings, their names); lines of a table of contents stay as they are.

    A heading stands alone: an empty line before it, and prose, not another heading, behind it.
    """
    names: list[str] = []

    def replace(match: re.Match[str]) -> str:
        before, after = text[max(match.start() - 2, 0) : match.start()], text[match.end() : match.end() + 400]
        following = next((line for line in after.split("\n") if line.strip()), "")
        if before.strip("\n \r") or (match.start() and not before.endswith("\n\n")) or CHAPTER.match(following):
            return match.group(0)
        names.append(" ".join(match.group(1).split()))
        return f"## {names[-1]}"

    return CHAPTER.sub(replace, text), names


@dataclass(frozen=True, kw_only=True)
class GutenbergSource(FileSource):
    """Plain text books of Project Gutenberg.

    with_marks_only: a text without the start mark is a counted drop; False takes it whole.
    """

    with_marks_only: bool = True

    suffixes: ClassVar[tuple[str, ...]] = (".txt",)
    version: ClassVar[int] = 3
    files_per_shard: ClassVar[int] = 16
    code_modules: ClassVar[tuple[str, ...]] = (
        *FileSource.code_modules,
        "data.sources.gutenberg",
        "data.sources.text_files",
        "data.sources.charset",
        "data.sources.stated",
    )
    libraries: ClassVar[tuple[str, ...]] = ("charset-normalizer",)

    def read(self, stream: Any, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """The book as one document."""
        data = self.read_file(stream)
        meta: dict[str, Any] = {}
        try:
            text, encoding = decode_text(data)
        except ValueError as error:
            yield self.drop(shard, None, "bad_encoding", value=str(error))
            return
        text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        try:
            text, meta = split_book(text)
        except ValueError as error:
            if self.with_marks_only:
                yield self.drop(shard, None, "not_a_gutenberg_text", value=str(error))
                return
        text, chapters = mark_chapters(text)
        group = meta.get("gutenberg_id") or shard["key"]
        yield self.document(shard, None, text, encoding=encoding, chapters=chapters, group=f"gutenberg:{group}", **meta)
