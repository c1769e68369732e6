"""Records out of huge XML files: cut by bytes, then parsed one at a time.

The dumps read here (MediaWiki pages, PubMed articles, OAI records, Stack Exchange rows) repeat one element a million
times. Inside text `<` is always escaped, so the tag's bytes mark records exactly. Cutting first bounds memory, keeps a
broken record from taking the rest of the file with it, and leaves every document type declaration outside of what is
parsed: an entity bomb has nothing to expand.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from html.entities import html5

from lxml import etree

from data.sources.limits import ReadLimits

CHUNK = 1 << 20  # bytes
MAX_TAIL = 64  # bytes kept between chunks so that a tag cut in two is found
_NAMED_ENTITY = re.compile(rb"&(?!(?:lt|gt|amp|quot|apos);)([A-Za-z][A-Za-z0-9]*);")  # XML knows those five itself


def cut_records(
    stream: io.BufferedReader, tag: str | tuple[str, ...], limits: ReadLimits
) -> Iterator[tuple[int, bytes | int]]:
    """(byte offset, bytes) of every `<tag ...> ... </tag>`, of one tag or any of several, tags included.

    A record beyond `max_record_bytes`, or one that the file ends inside of, comes as its length in bytes instead.
    """
    names = "|".join((tag,) if isinstance(tag, str) else tag)
    start_pattern, end_mark = re.compile(rb"<(" + names.encode() + rb")(?=[\s>/])"), b""
    buffer, base, limit = b"", 0, limits.max_record_bytes
    start: int | None = None  # of the record being read, in the buffer
    searched = 0
    skipped_from: int | None = None  # file offset of a record that is too large
    while chunk := stream.read1(CHUNK):
        buffer += chunk
        done = 0  # bytes up to the end of the last record; the buffer is cut once a chunk, not once a record
        while True:
            if skipped_from is not None or start is not None:
                end = buffer.find(end_mark, searched)
                if end < 0:
                    break
                end += len(end_mark)
                if skipped_from is not None:
                    yield skipped_from, base + end - skipped_from
                elif start is not None:
                    yield base + start, buffer[start:end] if end - start <= limit else end - start
                start, skipped_from, searched, done = None, None, end, end
            else:
                found = start_pattern.search(buffer, searched)
                if found is None:
                    break
                start = searched = found.start()
                end_mark = b"</" + found.group(1) + b">"
        if start is not None and len(buffer) - start > limit:
            skipped_from, start = base + start, None
        keep = start if start is not None else max(len(buffer) - MAX_TAIL, done)
        buffer, base = buffer[keep:], base + keep
        start = 0 if start is not None else None
        searched = max(len(buffer) - MAX_TAIL, 0)
    if skipped_from is not None:
        yield skipped_from, base + len(buffer) - skipped_from
    elif start is not None:
        yield base + start, len(buffer) - start


def _named_to_numeric(match: re.Match[bytes]) -> bytes:
    name = match.group(1)
    value = html5.get(name.decode() + ";")
    return value.encode("ascii", "xmlcharrefreplace") if value else b"&amp;" + name + b";"


def parse_xml(data: bytes) -> etree._Element:
    """The root element of one small XML text; no entity is expanded, no network or file is touched.

    HTML's named characters (&nbsp;, &alpha;) are understood without their DTD. libxml2's own limits stay on: depth 256,
    10 MB a text node. ValueError with one line where the text is not well formed.
    """
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False, huge_tree=False, recover=False
    )
    if b"<!ENTITY" in data:
        raise ValueError("entity declarations are not accepted")
    data = _NAMED_ENTITY.sub(_named_to_numeric, data)
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        if "Namespace prefix" not in str(error):
            raise ValueError(str(error).splitlines()[0] if str(error) else "not well formed") from error
        lenient = etree.XMLParser(
            resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, recover=True
        )  # a record cut out of its file may use prefixes that the file's root declares
        root = etree.fromstring(data, lenient)
    if root is None:
        raise ValueError("not well formed")
    return root


def local_name(element: etree._Element) -> str:
    """The tag without its namespace; "" for comments, processing instructions and entity references."""
    tag = element.tag
    return tag.rpartition("}")[2].rpartition(":")[2] if isinstance(tag, str) else ""


def child(element: etree._Element | None, *path: str) -> etree._Element | None:
    """The first descendant along local names; None where a step is missing."""
    for name in path:
        if element is None:
            return None
        element = next((inner for inner in element if local_name(inner) == name), None)
    return element


def children(element: etree._Element | None, *path: str) -> list[etree._Element]:
    """What stands directly below the element at the end of the path; [] where a step is missing."""
    found = child(element, *path)
    return list(found) if found is not None else []


def text_of(element: etree._Element | None) -> str:
    """All text inside, white space folded; "" for None."""
    return " ".join("".join(element.itertext()).split()) if element is not None else ""
