"""PubMed records (baseline and update XML): title and abstract, with headings of structured abstracts.

PubmedSource(name="pubmed", paths=("pubmed26n*.xml.gz",))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lxml import etree

from data.document import Document, Dropped
from data.sources.base import FileSource
from data.sources.jats import inline
from data.sources.stated import language_code
from data.sources.xml_records import child, children, cut_records, local_name, parse_xml, text_of

MONTHS = {name: f"{number:02d}" for number, name in enumerate(
    ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"), 1)}  # fmt: skip


def _folded(element: etree._Element | None) -> str:
    return " ".join(inline(element).split()).replace("_ ", "_") if element is not None else ""


def _padded(number: str) -> str:
    return number.zfill(2) if number else ""


def record_text(record: etree._Element) -> tuple[str, dict[str, Any]]:
    """(text, meta) of one article, or of a book or a chapter of one; text "" where it has no abstract."""
    book = child(record, "BookDocument")
    citation = child(record, "MedlineCitation") if book is None else book
    article = child(citation, "Article") if book is None else book
    book_title = _folded(child(book, "Book", "BookTitle"))
    title = _folded(child(article, "ArticleTitle")) or book_title
    parts = []
    for section in children(article, "Abstract"):
        if local_name(section) == "AbstractText" and (text := _folded(section)):
            label = section.get("Label")
            parts.append(f"{label}: {text}" if label else text)
    published = child(article, *(("Journal", "JournalIssue") if book is None else ("Book",)), "PubDate")
    month = text_of(child(published, "Month"))
    date = "-".join(
        filter(
            None,
            (
                text_of(child(published, "Year")),
                MONTHS.get(month[:3], _padded(month)),
                _padded(text_of(child(published, "Day"))),
            ),
        )
    ) or text_of(child(published, "MedlineDate"))
    meta = {
        "title": title,
        "pmid": text_of(child(citation, "PMID")),
        "doi": next((text_of(e) for e in article if e.get("EIdType") == "doi"), None) if article is not None else None,
        "journal": text_of(child(article, "Journal", "Title")),
        **({"book": book_title} if book_title else {}),
        "date": date,
        "language": language_code(text_of(child(article, "Language"))),
        "mesh": [text_of(child(heading, "DescriptorName")) for heading in children(citation, "MeshHeadingList")],
    }
    return (f"# {title}\n\n" if title else "") + "\n\n".join(parts) if parts else "", meta


@dataclass(frozen=True, kw_only=True)
class PubmedSource(FileSource):
    """Records of PubMed XML files, streamed; records without an abstract are counted drops."""

    suffixes: ClassVar[tuple[str, ...]] = (".xml",)
    version: ClassVar[int] = 4
    code_modules: ClassVar[tuple[str, ...]] = (
        *FileSource.code_modules,
        "data.sources.pubmed",
        "data.sources.jats",
        "data.sources.stated",
        "data.sources.xml_records",
    )
    libraries: ClassVar[tuple[str, ...]] = ("lxml",)

    def read(self, stream: Any, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """One document a record."""
        for offset, data in cut_records(stream, ("PubmedArticle", "PubmedBookArticle"), self.limits):
            if isinstance(data, int):
                yield self.too_large(shard, offset, data)
                continue
            try:
                text, meta = record_text(parse_xml(data))
            except ValueError as error:
                yield self.drop(shard, offset, "bad_xml", value=str(error))
                continue
            record = f"{meta['pmid'] or 'record'}@{offset}"
            if not text:
                yield self.drop(shard, record, "no_abstract", title=meta["title"])
            else:
                yield self.document(shard, record, text, offset=offset, group=f"pubmed:{meta['pmid']}", **meta)
