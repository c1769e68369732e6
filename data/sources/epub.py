"""EPUB books: chapters in reading order, title, author, language and rights kept.

EpubSource(name="epubs", paths=("books/",))
"""

from __future__ import annotations

import posixpath
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import unquote

from data.document import Document, Dropped
from data.sources import files
from data.sources.archives import PathError, safe_name
from data.sources.base import FileSource
from data.sources.extract_methods import decode_page
from data.sources.html_text import element_to_text, html_to_text, tidy
from data.sources.limits import BombError, CorruptError, ReadLimits
from data.sources.stated import language_code
from data.sources.xml_records import child, children, local_name, parse_xml, text_of

CHAPTER_TYPES = ("application/xhtml+xml", "text/html", "application/xml", "text/xml")
ENCRYPTION = "META-INF/encryption.xml"
FONT_ALGORITHMS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")  # obfuscated fonts, no DRM
MAX_RATIO = 300.0  # decompressed / compressed bytes of one member; XHTML reaches about 20


class Archive:
    """Members of a zip file, each read once and within limits; nothing is written to disk."""

    def __init__(self, stream: Any, limits: ReadLimits) -> None:
        try:
            self._zip = zipfile.ZipFile(stream)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise CorruptError(str(error)) from error
        if len(self._zip.infolist()) > limits.max_members:
            raise BombError(f"{len(self._zip.infolist())} members, limit {limits.max_members}")
        self._limits, self._total = limits, 0

    def names(self) -> set[str]:
        """Names of all members."""
        return set(self._zip.namelist())

    def read(self, name: str) -> bytes:
        """A member's bytes. CorruptError where it does not read, BombError beyond the limits of member or book."""
        try:
            info = self._zip.getinfo(name)
        except KeyError as error:
            raise CorruptError(f"{name} is missing") from error
        limit = self._limits.max_record_bytes - self._total
        if info.file_size > limit or info.file_size > MAX_RATIO * max(info.compress_size, 1000):
            raise BombError(f"{name}: {info.compress_size} bytes hold {info.file_size}")
        try:
            with self._zip.open(info) as member:
                data = member.read(limit + 1)  # what the header says need not be true
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            OSError,
            RuntimeError,
            NotImplementedError,
            ValueError,
        ) as error:
            raise CorruptError(f"{name}: {error}") from error
        self._total += len(data)
        if len(data) > limit:
            raise BombError(f"{name}: more than {limit} bytes")
        return data


def package_of(archive: Archive) -> tuple[str, Any]:
    """(path of the package file, its root element)."""
    try:
        container = parse_xml(archive.read("META-INF/container.xml"))
    except ValueError as error:
        raise CorruptError(f"container.xml: {error}") from error
    for element in container.iter():
        if local_name(element) == "rootfile" and (path := element.get("full-path")):
            try:
                return safe_name(path), parse_xml(archive.read(safe_name(path)))
            except PathError as error:
                raise CorruptError(f"the package path climbs out: {path}") from error
    raise CorruptError("container.xml names no package")


def spine_of(path: str, package: Any) -> tuple[list[str], list[str]]:
    """(chapter paths in reading order, paths that climb out of the book)."""
    folder = posixpath.dirname(path)
    items = {item.get("id"): item for item in children(package, "manifest") if local_name(item) == "item"}
    chapters, outside = [], []
    for reference in children(package, "spine"):
        item = items.get(reference.get("idref")) if local_name(reference) == "itemref" else None
        if (
            item is None
            or item.get("media-type") not in CHAPTER_TYPES
            or "nav" in (item.get("properties") or "").split()
        ):
            continue
        target = posixpath.normpath(posixpath.join(folder, unquote(item.get("href") or "")))
        try:
            chapters.append(safe_name(target))
        except PathError:
            outside.append(target)
    return chapters, outside


def encrypted_item(archive: Archive, chapters: Sequence[str]) -> str | None:
    """What encryption.xml locks besides fonts, or None: its path, or why the file does not tell."""
    if ENCRYPTION not in archive.names():
        return None
    try:
        declared = parse_xml(archive.read(ENCRYPTION))
    except ValueError as error:
        return f"{ENCRYPTION}: {error}"
    for data in declared.iter():
        if local_name(data) == "EncryptedData":
            method, target = child(data, "EncryptionMethod"), child(data, "CipherData", "CipherReference")
            algorithm = method.get("Algorithm") if method is not None else None
            path = posixpath.normpath(unquote((target.get("URI") or "") if target is not None else "")).lstrip("/")
            if algorithm not in FONT_ALGORITHMS or path in chapters:
                return path
    return None


def chapter_text(data: bytes) -> str:
    """The text of a chapter: XHTML as the XML that it is, since HTML knows no `<title/>` and would take what follows as
    part of it; anything else as HTML, in the encoding that it names or in UTF-8."""
    try:
        return tidy(element_to_text(parse_xml(data)))
    except ValueError:
        return html_to_text(decode_page(data, "")[0])


@dataclass(frozen=True, kw_only=True)
class EpubSource(FileSource):
    """EPUB 2 and 3 books without DRM.

    per_chapter: one document a chapter instead of one a book.
    """

    per_chapter: bool = False

    suffixes: ClassVar[tuple[str, ...]] = (".epub",)
    version: ClassVar[int] = 5
    files_per_shard: ClassVar[int] = 16
    code_modules: ClassVar[tuple[str, ...]] = (
        *FileSource.code_modules,
        *(
            f"data.sources.{name}"
            for name in ("epub", "archives", "charset", "extract_methods", "html_text", "stated", "xml_records")
        ),
    )
    libraries: ClassVar[tuple[str, ...]] = ("lxml", "w3lib", "charset-normalizer")

    def open(self, shard: Mapping[str, Any]) -> Any:
        """The file as stored: a zip is read from its end, so it must be seekable."""
        return files.open_bytes(shard["url"])

    def read(self, stream: Any, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """The book or its chapters; a chapter that does not read is a counted drop."""
        archive = Archive(stream, self.limits)
        path, package = package_of(archive)
        chapters, outside = spine_of(path, package)
        if (locked := encrypted_item(archive, chapters)) is not None:
            yield self.drop(shard, None, "encrypted", value=locked)
            return
        metadata = child(package, "metadata")
        values: dict[str, list[str]] = {}
        for element in metadata if metadata is not None else ():
            if (name := local_name(element)) and (value := text_of(element)):
                values.setdefault(name, []).append(value)
        meta = {
            "title": values.get("title", [None])[0],
            "authors": values.get("creator"),
            "language": language_code(values.get("language", [None])[0]),
            "licence": values.get("rights", [None])[0],
            "date": values.get("date", [None])[0],
            "publisher": values.get("publisher", [None])[0],
            "identifier": values.get("identifier", [None])[0],
            "group": f"epub:{shard['key']}",
        }
        for target in outside:
            yield self.drop(shard, f"chapter-{target}", "path_climbs_out", value=target)
        texts: list[tuple[str, str]] = []
        for number, chapter in enumerate(chapters):
            try:
                text = chapter_text(archive.read(chapter))
            except CorruptError as error:
                yield self.drop(shard, f"{number}-{chapter}", "corrupt_record", value=str(error))
                continue
            if text:
                texts.append((chapter, text))
            elif self.per_chapter:
                yield self.drop(shard, f"{number}-{chapter}", "empty_text", value=chapter)
        if self.per_chapter:
            if not chapters:
                yield self.drop(shard, None, "empty_text", value="no chapters")
            for number, (chapter, text) in enumerate(texts):
                yield self.document(shard, f"{number}", text, chapter=chapter, **meta)
        else:
            yield self.document(shard, None, "\n\n".join(text for _, text in texts), num_chapters=len(texts), **meta)
