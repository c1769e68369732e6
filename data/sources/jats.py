"""PubMed Central articles in JATS / NLM XML: title, abstract, sections in order, tables and captions as text.

JatsSource(name="pmc", paths=("PMC000xxxxxx.baseline.tar.gz", "articles/"))
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lxml import etree

from data.document import Document, Dropped
from data.sources.archives import is_tar, tar_members
from data.sources.base import FileSource
from data.sources.stated import language_code
from data.sources.xml_records import child, cut_records, local_name, parse_xml, text_of

SKIPPED = {"ref-list", "xref", "graphic", "inline-graphic", "media", "label", "object-id", "supplementary-material",
           "fn-group", "permissions", "tex-math", "alternatives", "processing-meta", "journal-meta"}  # fmt: skip
KEPT_REFERENCES = {"fig", "table", "disp-formula", "sec", "app", "boxed-text", "supplementary-material"}
MARKS = {"sup": "^", "sub": "_"}
LICENCES = (
    (re.compile(r"creativecommons\.org/licenses/([a-z-]+)/(\d\.\d)"), "CC-{}-{}"),
    (re.compile(r"creativecommons\.org/publicdomain/zero/(1\.0)"), "CC0-{}"),
    (re.compile(r"creativecommons\.org/publicdomain/mark/(1\.0)"), "Public-domain-mark-{}"),
)
EMPTY_BRACKETS = re.compile(r"[\[(][\s,;–-]*[\])]")  # what is left of a bracket full of citations
SPACE_BEFORE_MARK, SPACED_MARKS = re.compile(r" +([.,;:)])"), (" .", " ,", " ;", " :", " )")
MAX_DEPTH = 100
HEAD_BYTES = 4096
SEVERAL = re.compile(rb"\A(?:\xef\xbb\xbf)?\s*(?:<[?!][^>]*>\s*)*<(?:pmc-articleset|articles|OAI-PMH)[\s>]")


def licence_of(article: etree._Element) -> str | None:
    """An SPDX-like name from the licence's link or text; the text itself, shortened, where it names no known one."""
    for element in article.iter("{*}license"):
        values = " ".join(
            [*map(str, element.attrib.values()), *(str(v) for e in element.iter() for v in e.attrib.values())]
        )
        for pattern, name in LICENCES:
            if found := pattern.search(f"{values} {text_of(element)}"):
                return name.format(*(part.upper() for part in found.groups()))
        return text_of(element)[:200] or element.get("license-type")
    return None


def inline(element: etree._Element, depth: int = 0) -> str:
    """The text of a paragraph or title: citations to references left out, sub- and superscripts marked."""
    parts = [element.text or ""]
    for inner in element:
        name = local_name(inner)
        if name == "xref":
            keep = inner.get("ref-type") in KEPT_REFERENCES
            parts.append("".join(inner.itertext()) if keep else "")
        elif name in MARKS:
            text = inline(inner, depth + 1) if depth < MAX_DEPTH else ""
            parts.append(text if not text or text.startswith(("[", "(")) else f"{MARKS[name]}{text}")
        elif name in ("inline-formula", "disp-formula"):
            parts.append(_formula(inner))
        elif name and name not in SKIPPED and depth < MAX_DEPTH:
            parts.append(inline(inner, depth + 1))
        parts.append(inner.tail or "")
    return "".join(parts)


def _formula(element: etree._Element) -> str:
    tex = next((e for e in element.iter() if local_name(e) == "tex-math"), None)
    if tex is not None:
        found = re.search(r"\\begin\{document\}(.*?)\\end\{document\}", "".join(tex.itertext()), re.S)
        return " ".join((found.group(1) if found else "".join(tex.itertext())).split())
    return " ".join("".join(element.itertext()).split())


def _clean(text: str) -> str:
    text = EMPTY_BRACKETS.sub("", " ".join(text.split()))
    return SPACE_BEFORE_MARK.sub(r"\1", text) if any(mark in text for mark in SPACED_MARKS) else text


def blocks_of(element: etree._Element, level: int, depth: int = 0) -> Iterator[str]:
    """Headings, paragraphs, lists, tables and captions below an element, in order."""
    if depth > MAX_DEPTH:
        return
    for inner in element:
        name = local_name(inner)
        if name in ("sec", "app", "ack", "glossary", "notes", "boxed-text"):
            title = _clean(inline(heading)) if (heading := child(inner, "title")) is not None else ""
            if not title and name == "ack":
                title = "Acknowledgments"
            if title:
                yield f"{'#' * min(level, 6)} {title}"
            yield from blocks_of(inner, level + 1, depth + 1)
        elif name == "p":
            yield from _paragraph(inner, level, depth)
        elif name == "list":
            items = [" ".join(blocks_of(item, level, depth + 1)) for item in inner if local_name(item) == "list-item"]
            yield "\n".join(f"- {item}" for item in items if item)
        elif name in ("table-wrap", "fig", "table-wrap-group", "fig-group"):
            yield from _float(inner, level, depth)
        elif name == "disp-formula":
            yield _formula(inner)
        elif name in (
            "disp-quote",
            "def-list",
            "statement",
            "body",
            "app-group",
            "floats-group",
            "abstract",
            "verse-group",
        ):
            yield from blocks_of(inner, level, depth + 1)
        elif name in ("def-item", "term", "def"):
            yield _clean(inline(inner))


def _paragraph(element: etree._Element, level: int, depth: int) -> Iterator[str]:
    """A paragraph; tables, lists and formulas that stand inside of it follow it."""
    inside = [e for e in element if local_name(e) in ("table-wrap", "fig", "list", "disp-quote", "boxed-text")]
    tails = {id(e): e.tail for e in inside}
    for e in inside:
        tail, e.tail = e.tail, None
        previous = e.getprevious()
        element.remove(e)
        if previous is not None:
            previous.tail = (previous.tail or "") + (tail or "")
        else:
            element.text = (element.text or "") + (tail or "")
    yield _clean(inline(element))
    if inside and tails:
        holder = etree.Element("holder")
        holder.extend(inside)
        yield from blocks_of(holder, level, depth + 1)


def _float(element: etree._Element, level: int, depth: int) -> Iterator[str]:
    label, caption = text_of(child(element, "label")), child(element, "caption")
    words = " ".join(_clean(inline(part)) for part in (caption if caption is not None else ()) if local_name(part))
    if label or words:
        yield f"{label}: {words}" if label and words else label or words
    for table in element.iter("{*}table"):
        rows = []
        for row in table.iter("{*}tr"):
            cells = [_clean(inline(cell)) for cell in row if local_name(cell) in ("td", "th")]
            if any(cells):
                rows.append(" | ".join(cells))
        yield "\n".join(rows)
    for inner in element:
        if local_name(inner) in ("table-wrap", "fig") and depth < MAX_DEPTH:
            yield from _float(inner, level, depth + 1)


def _date(element: etree._Element) -> str:
    parts = (text_of(child(element, part)) for part in ("year", "month", "day"))
    return "-".join(part.zfill(2) for part in parts if part)


def article_text(article: etree._Element) -> tuple[str, dict[str, Any]]:
    """(text, meta) of one `<article>`. ValueError where it is none."""
    if local_name(article) != "article":
        raise ValueError(f"the root is <{local_name(article)}>, expected <article>")
    front = child(article, "front", "article-meta")
    title_element = child(front, "title-group", "article-title")
    title = _clean(inline(title_element)) if title_element is not None else ""
    parts = [f"# {title}"] if title else []
    for abstract in front if front is not None else ():
        if local_name(abstract) == "abstract":
            heading = _clean(inline(name)) if (name := child(abstract, "title")) is not None else "Abstract"
            parts += [f"## {heading}", *blocks_of(abstract, 3)]
    for section in ("body", "floats-group"):
        if (element := child(article, section)) is not None:
            parts += blocks_of(element, 2)
    if (back := child(article, "back")) is not None:
        parts += blocks_of(back, 2)
    ids = {
        e.get("pub-id-type"): text_of(e) for e in (front if front is not None else ()) if local_name(e) == "article-id"
    }
    dates = [e for e in (front if front is not None else ()) if local_name(e) == "pub-date"]
    stated = filter(None, map(_date, dates))
    date = min(stated, key=lambda date: (-date.count("-"), date), default="")  # a whole one before a year alone
    meta = {
        "title": title,
        "pmid": ids.get("pmid"),
        "pmcid": ids.get("pmc") or ids.get("pmcid"),
        "doi": ids.get("doi"),
        "journal": text_of(next(article.iter("{*}journal-title"), None)),
        "date": date,
        "licence": licence_of(article),
        "article_type": article.get("article-type"),
        "language": language_code(article.get("{http://www.w3.org/XML/1998/namespace}lang")),
    }
    return "\n\n".join(part for part in parts if part.strip()), meta


@dataclass(frozen=True, kw_only=True)
class JatsSource(FileSource):
    """JATS articles: folders of .nxml and .xml files, files of many as PubMed Central's and Europe PMC's services
    send them, and the tars in which PubMed Central packs them."""

    suffixes: ClassVar[tuple[str, ...]] = (".nxml", ".xml", ".tar", ".tgz")
    version: ClassVar[int] = 4
    files_per_shard: ClassVar[int] = 32
    code_modules: ClassVar[tuple[str, ...]] = (
        *FileSource.code_modules,
        *(f"data.sources.{name}" for name in ("jats", "archives", "stated", "xml_records")),
    )
    libraries: ClassVar[tuple[str, ...]] = ("lxml",)

    def read(self, stream: Any, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """One document an article."""
        if is_tar(stream.peek(512)[:512]):
            yield from self._archive(stream, shard)
            return
        if SEVERAL.search(stream.peek(HEAD_BYTES)[:HEAD_BYTES]):
            for offset, data in cut_records(stream, "article", self.limits):
                if isinstance(data, int):
                    yield self.too_large(shard, offset, data)
                else:
                    yield self._article(shard, str(offset), data)
            return
        yield self._article(shard, None, self.read_file(stream))

    def _archive(self, stream: Any, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        for count, member in enumerate(tar_members(stream, 100 * self.limits.max_members)):
            if not member.name.lower().endswith((".xml", ".nxml")):
                continue
            if member.fault:
                yield self.drop(shard, f"member-{count}", member.fault, value=member.name)
            elif member.size > self.limits.max_record_bytes:
                yield self.too_large(shard, member.name, member.size)
            else:
                yield self._article(shard, member.name, member.read())

    def _article(self, shard: Mapping[str, Any], record: str | None, data: bytes) -> Document | Dropped:
        try:
            text, meta = article_text(parse_xml(data))
        except (ValueError, RecursionError) as error:
            return self.drop(shard, record, "bad_xml", value=str(error) or type(error).__name__)
        group = meta["pmcid"] or meta["doi"] or record or shard["key"]
        return self.document(shard, record, text, group=f"article:{group}", **meta)
