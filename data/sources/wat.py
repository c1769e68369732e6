"""Text and links of a WAT record: what Common Crawl computed about one page."""

from __future__ import annotations

import json
from typing import Any

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
        page = page.get(step) if isinstance(page, dict) else None
    if not isinstance(page, dict):
        return "", {}
    head = page.get("Head")
    head = head if isinstance(head, dict) else {}
    title = head.get("Title") if isinstance(head.get("Title"), str) else ""
    texts = [title.strip()] if title else []
    metas = head.get("Metas")
    for item in metas if isinstance(metas, list) else []:
        name = item.get("name") or item.get("property") if isinstance(item, dict) else None
        content = item.get("content") if isinstance(item, dict) else None
        if str(name).lower() in DESCRIPTIONS and isinstance(content, str) and content.strip() not in texts:
            texts.append(content.strip())
    links = page.get("Links")
    urls = [item["url"] for item in links if isinstance(item, dict) and isinstance(item.get("url"), str)] if isinstance(
        links, list
    ) else []  # fmt: skip
    return "\n\n".join(texts), {"title": title, "links": urls[:MAX_LINKS], "num_links": len(urls), "extractor": "wat"}
