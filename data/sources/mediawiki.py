"""MediaWiki XML dumps (`pages-articles.xml.bz2`): wikitext into plain text with light Markdown headings.

MediaWikiSource(name="wikipedia_eo", paths=("eowiki-*-pages-articles.xml.bz2",), language="eo", licence="CC-BY-SA-4.0")
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import mwparserfromhell
from mwparserfromhell import nodes

from data.document import Document, Dropped
from data.sources.base import FileSource
from data.sources.xml_records import child, cut_records, parse_xml, text_of

DROPPED_TAGS = {"ref", "references", "gallery", "timeline", "imagemap", "table", "score", "templatestyles", "mapframe"}
KEPT_VERBATIM = {"math", "chem", "ce"}
NAMESPACE_LINK = re.compile(r"^[^\[\]|]{1,40}?:\S")  # [[File:x]], [[Kategorio:x]]: a namespace or an interwiki prefix
REDIRECT = re.compile(r"^\s*#[^\W\d_]+:?\s*\[\[", re.UNICODE)  # #REDIRECT [[x]] in any language
SWITCH = re.compile(r"__[^\W\d_]{3,40}__")  # __NOTOC__
SPACED_STOP = re.compile(r"(?<=\w) \.(?=\s|$)")
LIST_MARKS, LIST_MARK = "*#:;", re.compile(r"^[*#:;]+\s*")
MAX_WIKITEXT = 2_500_000  # characters; MediaWiki itself stops at 2 MiB a page
MAX_DEPTH = 40  # nested nodes rendered


def wikitext_to_text(wikitext: str) -> str:
    """Plain text: links as their labels, headings as `## Name`, lists as `- item`; templates, tables, references and
    files are left out; formulas stay as written between `$`."""
    rendered = _render(mwparserfromhell.parse(wikitext, skip_style_tags=True), 0)
    rendered = rendered.replace("'''", "").replace("''", "")
    lines = [
        (LIST_MARK.sub("- ", line) if line[:1] in LIST_MARKS else line).rstrip()
        for line in rendered.split("\n")
        if line.strip() not in LIST_MARKS or not line
    ]
    text = "\n".join(lines)
    if "  " in text or "\t" in text:
        text = re.sub(r"[ \t]{2,}", " ", text)
    text = SWITCH.sub("", text.replace("()", "").replace(" ,", ","))
    text = SPACED_STOP.sub(".", text)  # where a template stood
    text = re.sub(r"\x00(#+) ", r"\1 ", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _render(code: Any, depth: int) -> str:
    if depth > MAX_DEPTH:
        return ""
    out: list[str] = []
    for node in code.nodes:
        if isinstance(node, nodes.Text):
            out.append(str(node.value))
        elif isinstance(node, nodes.Wikilink):
            out.append(_link(node, depth))
        elif isinstance(node, nodes.ExternalLink):
            out.append(_render(node.title, depth + 1) if node.title is not None else "")
        elif isinstance(node, nodes.Heading):
            out.append("\n\x00" + "#" * node.level + " " + _render(node.title, depth + 1).strip() + "\n")
        elif isinstance(node, nodes.HTMLEntity):
            out.append(node.normalize() or "")
        elif isinstance(node, nodes.Tag):
            out.append(_tag(node, depth))
    return "".join(out)


def _link(node: Any, depth: int) -> str:
    title = str(node.title).strip()
    if title.startswith(":"):
        title = title[1:]
    elif NAMESPACE_LINK.match(title):
        return ""
    return _render(node.text, depth + 1) if node.text is not None else title


def _tag(node: Any, depth: int) -> str:
    name = str(node.tag).strip().lower()
    if name in ("li", "dt", "dd") and node.wiki_markup:
        return str(node.wiki_markup)
    if name in ("br", "hr"):
        return "\n"
    if name in DROPPED_TAGS or node.contents is None:
        return ""
    if name in KEPT_VERBATIM:
        return f"${str(node.contents).strip()}$"
    inner = _render(node.contents, depth + 1)
    return f"\n{inner}\n" if name in ("p", "div", "blockquote", "pre", "syntaxhighlight", "poem") else inner


@dataclass(frozen=True, kw_only=True)
class MediaWikiSource(FileSource):
    """Pages of MediaWiki XML dumps.

    namespaces: page namespaces that are kept (0: articles); others are counted drops, and so are redirects.
    """

    namespaces: tuple[int, ...] = (0,)

    suffixes: ClassVar[tuple[str, ...]] = (".xml",)
    version: ClassVar[int] = 3
    code_modules: ClassVar[tuple[str, ...]] = (
        *FileSource.code_modules,
        "data.sources.mediawiki",
        "data.sources.xml_records",
    )
    libraries: ClassVar[tuple[str, ...]] = ("lxml", "mwparserfromhell")

    def read(self, stream: Any, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """One document a page: its newest revision in the file. A page moved while a dump is made may come twice."""
        for offset, record in cut_records(stream, "page", self.limits):
            if isinstance(record, int):
                yield self.too_large(shard, offset, record)
                continue
            try:
                page = parse_xml(record)
            except ValueError as error:
                yield self.drop(shard, offset, "bad_xml", value=str(error))
                continue
            yield self._page(shard, offset, page)

    def _page(self, shard: Mapping[str, Any], offset: int, page: Any) -> Document | Dropped:
        title, number = text_of(child(page, "title")), f"{text_of(child(page, 'id')) or 'page'}@{offset}"
        namespace = text_of(child(page, "ns")) or "0"
        revisions = [inner for inner in page if inner.tag.rpartition("}")[2] == "revision"] if len(page) else []
        revision = revisions[-1] if revisions else None
        body = child(revision, "text")
        wikitext = "".join(body.itertext()) if body is not None else ""
        if not namespace.lstrip("-").isdigit() or int(namespace) not in self.namespaces:
            return self.drop(shard, number, "other_namespace", value=namespace, title=title)
        if child(page, "redirect") is not None or REDIRECT.match(wikitext):
            return self.drop(shard, number, "redirect", title=title)
        if len(wikitext) > MAX_WIKITEXT:
            return self.drop(
                shard, number, "record_too_large", value=len(wikitext), threshold=MAX_WIKITEXT, title=title
            )
        try:
            text = wikitext_to_text(wikitext)
        except (RecursionError, ValueError) as error:
            return self.drop(shard, number, "bad_wikitext", value=str(error), title=title)
        date = text_of(child(revision, "timestamp"))
        text = f"# {title}\n\n{text}" if text else ""
        return self.document(shard, number, text, title=title, date=date, offset=offset, group=title)
