"""OAI-PMH records of arXiv (formats arXiv and oai_dc): abstracts as documents, and metadata for full papers.

OaiSource(name="abstracts", paths=("arxiv-oai/",))
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from lxml import etree

from data.document import Document, Dropped
from data.sources import files
from data.sources.base import FileSource
from data.sources.limits import BombError, CorruptError, ReadLimits
from data.sources.xml_records import child, children, cut_records, local_name, parse_xml, text_of


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperMetadata:
    """What a record says of one paper."""

    identifier: str
    title: str
    abstract: str
    authors: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    date: str = ""
    licence: str = ""
    doi: str = ""

    def as_meta(self) -> dict[str, Any]:
        """The values that a paper's meta takes over."""
        values = {
            "title": self.title,
            "authors": list(self.authors),
            "categories": list(self.categories),
            "date": self.date,
            "licence": self.licence,
            "doi": self.doi,
        }
        return {name: value for name, value in values.items() if value}


def parse_record(record: etree._Element) -> PaperMetadata | None:
    """The metadata of one `<record>`; None where it was deleted or has a format that is not known."""
    metadata = child(record, "metadata")
    if metadata is None or not len(metadata):
        return None
    inner = next((element for element in metadata if local_name(element)), None)
    if inner is None:
        return None
    identifier = text_of(child(record, "header", "identifier")).rpartition(":")[2]
    if local_name(inner) == "dc":
        return _dublin_core(inner, identifier)
    if local_name(inner) not in ("arXiv", "arXivRaw"):
        return None
    authors = [
        " ".join(filter(None, (text_of(child(author, "forenames")), text_of(child(author, "keyname")))))
        for author in children(inner, "authors")
        if local_name(author) == "author"
    ]
    raw = text_of(child(inner, "authors")) if not authors else ""
    return PaperMetadata(
        identifier=text_of(child(inner, "id")) or identifier,
        title=text_of(child(inner, "title")),
        abstract=text_of(child(inner, "abstract")),
        authors=tuple(authors) or ((raw,) if raw else ()),
        categories=tuple(text_of(child(inner, "categories")).split()),
        date=text_of(child(inner, "created")) or text_of(child(record, "header", "datestamp")),
        licence=text_of(child(inner, "license")),
        doi=text_of(child(inner, "doi")),
    )


def _dublin_core(inner: etree._Element, identifier: str) -> PaperMetadata:
    values: dict[str, list[str]] = {}
    for element in inner:
        if name := local_name(element):
            values.setdefault(name, []).append(text_of(element))
    descriptions = sorted(values.get("description", [""]), key=len)
    return PaperMetadata(
        identifier=identifier,
        title=values.get("title", [""])[0],
        abstract=descriptions[-1],
        authors=tuple(values.get("creator", ())),
        categories=tuple(values.get("subject", ())),
        date=values.get("date", [""])[0],
        licence=values.get("rights", [""])[0],
    )


class KnownPapers:
    """What papers take over from their records, by identifier, in a temporary SQLite file: arXiv has millions."""

    def __init__(self) -> None:
        folder = tempfile.mkdtemp(prefix="sluice-papers-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        path = Path(folder) / "papers.sqlite"
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for statement in (
            "PRAGMA journal_mode=OFF",
            "PRAGMA synchronous=OFF",
            "CREATE TABLE papers (identifier TEXT PRIMARY KEY, meta TEXT NOT NULL) WITHOUT ROWID",
            "BEGIN",
        ):
            self._database.execute(statement)

    def put(self, paper: PaperMetadata) -> None:
        """Keep the newest record of a paper, its abstract left out."""
        values = (_utf8(paper.identifier), json.dumps(paper.as_meta()))
        self._database.execute("INSERT OR REPLACE INTO papers VALUES (?, ?)", values)

    def get(self, identifier: str) -> dict[str, Any]:
        """The values that a paper's meta takes over; {} where no record tells."""
        query = "SELECT meta FROM papers WHERE identifier=?"
        row = self._database.execute(query, (_utf8(identifier),)).fetchone()
        return dict(json.loads(row[0])) if row else {}


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


@lru_cache(maxsize=1)  # a worker reads many papers, and the same metadata for all of them
def read_metadata(entries: tuple[files.FileEntry, ...], limits: ReadLimits) -> KnownPapers:
    """Metadata by identifier of every readable record; a file's fault ends that file."""
    known = KnownPapers()
    for entry in entries:
        try:
            with files.open_stream(entry.url, limits) as stream:
                for _, data in cut_records(stream, "record", limits):
                    try:
                        found = parse_record(parse_xml(data)) if isinstance(data, bytes) else None
                    except ValueError:
                        continue
                    if found is not None:
                        known.put(found)
        except (CorruptError, BombError):
            continue
    return known


@dataclass(frozen=True, kw_only=True)
class OaiSource(FileSource):
    """Title and abstract of each OAI-PMH record."""

    suffixes: ClassVar[tuple[str, ...]] = (".xml",)
    code_modules: ClassVar[tuple[str, ...]] = (*FileSource.code_modules, "data.sources.oai", "data.sources.xml_records")
    libraries: ClassVar[tuple[str, ...]] = ("lxml",)

    def read(self, stream: Any, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """One document a record; deleted records are counted drops."""
        for offset, data in cut_records(stream, "record", self.limits):
            if isinstance(data, int):
                yield self.too_large(shard, offset, data)
                continue
            try:
                record = parse_xml(data)
            except ValueError as error:
                yield self.drop(shard, offset, "bad_xml", value=str(error))
                continue
            found = parse_record(record)
            if found is None:
                header = child(record, "header")
                deleted = header is not None and header.get("status") == "deleted"
                yield self.drop(shard, offset, "deleted" if deleted else "unknown_format")
                continue
            text = f"# {found.title}\n\n{found.abstract}" if found.title and found.abstract else found.abstract
            meta = {"arxiv_id": found.identifier, "group": f"arxiv:{found.identifier}", **found.as_meta()}
            yield self.document(shard, f"{found.identifier}@{offset}", text, offset=offset, **meta)
