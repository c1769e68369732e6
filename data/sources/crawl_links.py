"""What a fetched page leads to: links, feeds, sitemaps, redirects."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urljoin

from lxml import etree, html

from data.sources.crawl_urls import canonical
from data.sources.extract_methods import decode_page
from data.sources.xml_records import local_name, parse_xml

MAX_LINKS = 2000  # links taken from one page
MAX_SITEMAP_URLS = 50_000  # the sitemap protocol's own limit for one file
FEEDS = ("application/rss+xml", "application/atom+xml")


def links_of(body: bytes, content_type: str, base: str) -> tuple[list[str], list[str]]:
    """(page links, feed links) of an HTML page, canonical, each once; nofollow is obeyed."""
    text, _ = decode_page(body, content_type)
    if not text.strip():
        return [], []
    try:
        parser = html.HTMLParser(no_network=True, huge_tree=False, remove_comments=True)
        root = etree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text).encode("utf-8", "replace"), parser)
    except (etree.XMLSyntaxError, ValueError):
        return [], []
    if root is None:
        return [], []
    pages: dict[str, None] = {}
    feeds: dict[str, None] = {}
    for element in root.iter("a", "area", "link", "base", "iframe", "frame", "meta"):
        tag, address = element.tag, element.get("href") or element.get("src") or ""
        relation = (element.get("rel") or "").lower()
        if tag == "meta":
            if element.get("name", "").lower() == "robots" and "nofollow" in (element.get("content") or "").lower():
                return [], []
            continue
        if tag == "base":
            base = _joined(base, address)
            continue
        wanted = tag != "link" or relation in ("next", "prev", "canonical") or "alternate" in relation
        if not wanted or "nofollow" in relation or not address or len(pages) >= MAX_LINKS:
            continue
        found = canonical(address, base)
        if found is not None:
            (feeds if (element.get("type") or "").lower() in FEEDS else pages)[found] = None
    return list(pages), list(feeds)


def _joined(base: str, address: str) -> str:
    """What addresses of a page are relative to; one that is none is passed over, as browsers do."""
    try:
        return urljoin(base, address)
    except ValueError:
        return base


def sitemap_links(body: bytes, base: str) -> tuple[list[str], list[str]]:
    """(pages, further sitemaps) of a sitemap or feed (RSS, Atom), or of a plain list; ([], []) for others."""
    if body[:2] == b"\x1f\x8b":
        from data.sources.warc import decode_payload

        body = decode_payload(body, {"content-encoding": "gzip"}, 50 << 20).data
    if body.lstrip()[:1] != b"<":
        lines = body.decode("utf-8", "replace").split()
        urls = [found for line in lines[:MAX_SITEMAP_URLS] if (found := canonical(line))]
        return list(dict.fromkeys(urls)), []
    try:
        root = parse_xml(body)
    except ValueError:
        return [], []
    kind = local_name(root)
    pages: list[str] = []
    sitemaps: list[str] = []
    for element in root.iter():
        name = local_name(element)
        parent = element.getparent()
        above = local_name(parent) if parent is not None else ""
        if name == "loc" and above in ("url", "sitemap"):
            found = canonical("".join(element.itertext()), base)
            if found:
                (pages if above == "url" else sitemaps).append(found)
        elif name == "link" and kind in ("rss", "RDF", "feed") and above in ("item", "entry"):
            address = element.get("href") if kind == "feed" else "".join(element.itertext())
            if element.get("rel", "alternate") == "alternate" and (found := canonical(address or "", base)):
                pages.append(found)
        if len(pages) >= MAX_SITEMAP_URLS:
            break
    return list(dict.fromkeys(pages)), list(dict.fromkeys(sitemaps))


def robots_sitemaps(body: bytes, base: str) -> list[str]:
    """Sitemaps that a robots.txt names."""
    found = re.findall(rb"(?im)^[ \t]*sitemap[ \t]*:[ \t]*(\S+)", body[: 1 << 19])
    urls = [url for address in found if (url := canonical(address.decode("utf-8", "replace"), base))]
    return list(dict.fromkeys(urls))


def redirect_of(status: int, headers: Mapping[str, str], url: str) -> str | None:
    """Where a redirect leads, canonical; None for other answers."""
    if status not in (301, 302, 303, 307, 308):
        return None
    return canonical(headers.get("location", ""), url)


def text_header(headers: Any) -> list[tuple[str, str]]:
    """(name, value) pairs of Scrapy's headers, in order, as text."""
    pairs = []
    for name, values in headers.items():
        pairs += [(name.decode("latin-1"), value.decode("latin-1")) for value in values]
    return pairs
