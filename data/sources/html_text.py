"""HTML of posts and book chapters into text: all of it is content, so nothing is guessed away as on web pages.

Paragraphs, headings (`## `), lists (`- `, `1. `), quotes (`> `), code (fenced), tables (` | `), images by their text.
"""

from __future__ import annotations

import re

from lxml import etree, html

MAX_DEPTH = 200  # nested elements; deeper ones give their text only
BLOCKS = {
    "p", "div", "section", "article", "header", "footer", "aside", "main", "figure", "figcaption", "address", "dl",
    "dt", "dd", "center", "body", "html", "details", "summary", "form", "fieldset", "nav",
}  # fmt: skip
SKIPPED = {"script", "style", "head", "noscript", "template", "svg", "iframe", "object", "button", "select", "title"}
HEADINGS = {"h1": 1, "h2": 2, "h3": 3, "h4": 4, "h5": 5, "h6": 6}
WHITE = "\t\r\n\f\v"  # with the space, what HTML folds; a no-break space it does not
RUNS = re.compile("  +")
LANGUAGE_CLASS = re.compile(r"\blang(?:uage)?-([A-Za-z0-9+#-]+)")


def html_to_text(markup: str | bytes) -> str:
    """The text of an HTML fragment or document; "" where there is none. Never raises on bad markup."""
    source = markup if isinstance(markup, bytes) else markup.replace("\x00", "").encode("utf-8", "replace")
    if not source.strip():
        return ""
    encoding = None if isinstance(markup, bytes) else "utf-8"
    parser = html.HTMLParser(encoding=encoding, no_network=True, remove_comments=True, remove_pis=True, huge_tree=False)
    try:
        root = etree.fromstring(source, parser)
    except (etree.XMLSyntaxError, ValueError, AssertionError):
        return ""
    if root is None:
        return ""
    return tidy(element_to_text(root))


def tidy(text: str) -> str:
    """At most one empty line between blocks, none at the ends, no white space before line ends."""
    *lines, last = text.split("\n")
    text = "\n".join([*(line.rstrip(" \t") for line in lines), last])
    return re.sub(r"\n\n\n+", "\n\n", text).strip("\n ")


def fold(text: str) -> str:
    """Every run of HTML's white space as one space. Looking for each character first is ten times faster than one
    pattern for all runs, and most texts have none."""
    for character in WHITE:
        if character in text:
            text = text.replace(character, " ")
    return RUNS.sub(" ", text) if "  " in text else text


def element_to_text(element: etree._Element, depth: int = 0) -> str:
    """The blocks inside an element as raw text; `tidy` brings the spacing into order."""
    tag = element.tag.rpartition("}")[2].lower() if isinstance(element.tag, str) else ""
    if not tag or tag in SKIPPED:
        return ""
    if tag in ("pre", "listing"):
        return _code(element)
    if tag == "br":
        return "\n"
    if tag == "hr":
        return "\n\n"
    if tag == "img":
        return fold(element.get("alt") or "")
    if depth > MAX_DEPTH:
        return fold("".join(element.itertext()))
    if tag == "table":
        return _table(element, depth)
    if tag in ("ul", "ol"):
        return _list(element, tag, depth)
    inner = _inner(element, depth)
    if tag in HEADINGS:
        title = fold(inner).strip()
        return f"\n\n{'#' * HEADINGS[tag]} {title}\n\n" if title else ""
    if tag == "blockquote":
        return "\n\n" + "\n".join(f"> {line}".rstrip() for line in tidy(inner).split("\n")) + "\n\n"
    if tag == "code" and inner.strip() and "`" not in inner:
        return f"`{inner.strip()}`"
    return f"\n\n{inner.strip()}\n\n" if tag in BLOCKS else inner


def _inner(element: etree._Element, depth: int) -> str:
    parts = [fold(element.text)] if element.text else []
    for inner in element:
        parts.append(element_to_text(inner, depth + 1))
        if inner.tail:
            parts.append(fold(inner.tail))
    return "".join(parts)


def _code(element: etree._Element) -> str:
    text = "".join(element.itertext()).strip("\n").rstrip()
    if not text.strip():
        return ""
    classes = " ".join(inner.get("class") or "" for inner in element.iter() if isinstance(inner.tag, str))
    found = LANGUAGE_CLASS.search(classes)
    fence = "````" if "```" in text else "```"
    return f"\n\n{fence}{found.group(1) if found else ''}\n{text}\n{fence}\n\n"


def _list(element: etree._Element, tag: str, depth: int) -> str:
    lines, number = [], 0
    for item in element:
        text = tidy(element_to_text(item, depth + 1))
        if not text:
            continue
        number += 1
        mark = f"{number}. " if tag == "ol" else "- "
        lines.append(mark + text.replace("\n", "\n" + " " * len(mark)))
    return "\n\n" + "\n".join(lines) + "\n\n" if lines else ""


def _table(element: etree._Element, depth: int) -> str:
    rows = []
    for row in element.iter("{*}tr"):
        cells = [
            fold(element_to_text(cell, depth + 1)).strip()
            for cell in row
            if isinstance(cell.tag, str) and cell.tag.rpartition("}")[2].lower() in ("td", "th")
        ]
        if any(cells):
            rows.append(" | ".join(cells))
    return "\n\n" + "\n".join(rows) + "\n\n" if rows else ""
