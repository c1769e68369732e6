"""Text and links of a WAT record: what Common Crawl computed about one page."""

from __future__ import annotations

import json
from typing import Any

from data.sources.jsonl import as_dict, as_list

MAX_LINKS = 200  # links kept in a document's meta
DESCRIPTIONS = ("description", "og:description", "twitter:description")


def wat_text(data: bytes) -> tuple[str, dict[str, Any]]:
    """(title and description, meta) of one WAT JSON record; ("", {}) where it describes no page."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return "", {}
    page: Any = record
    for step in ("Envelope", "Payload-Metadata", "HTTP-Response-Metadata", "HTML-Metadata"):
        page = as_dict(page).get(step)
    if not isinstance(page, dict):
        return "", {}
    head = as_dict(page.get("Head"))
    title = head.get("Title") if isinstance(head.get("Title"), str) else ""
    texts = [title.strip()] if title else []
    for item in map(as_dict, as_list(head.get("Metas"))):
        content = item.get("content")
        known = str(item.get("name") or item.get("property")).lower() in DESCRIPTIONS
        if known and isinstance(content, str) and content.strip() not in texts:
            texts.append(content.strip())
    urls = [link["url"] for link in map(as_dict, as_list(page.get("Links"))) if isinstance(link.get("url"), str)]
    return "\n\n".join(texts), {"title": title, "links": urls[:MAX_LINKS], "num_links": len(urls), "extractor": "wat"}
