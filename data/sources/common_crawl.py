"""Common Crawl by URL pattern: look up the index, fetch only those records, extract them.

    CommonCrawlSource(name="docs", crawl="CC-MAIN-2026-30", urls=("docs.python.org/*",), user_agent="lab (me@uni.edu)")

The index server answers in pages; a page is a shard. One record is one ranged request of a few kilobytes.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import urlencode

from data.document import Document, Dropped
from data.sources.base import make_document, make_drop
from data.sources.extract import ExtractConfig, Extracted, ExtractionPool, Page, share_of_cores
from data.sources.http_fetch import FetchError, HttpClient, HttpLimits
from data.sources.url_block import UrlBlockList
from data.sources.warc import WarcSource

CRAWL_NAME = re.compile(r"[A-Za-z0-9-]+")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]*")  # as in the index; `..` is refused besides


@dataclass(frozen=True, kw_only=True)
class CommonCrawlSource:
    """Captures of URLs in one crawl.

    urls: patterns of the index server: exact addresses, `example.org/path/*`, `*.example.org`.
    user_agent: names who asks and how to reach them; the server wants to know.
    mime_types, statuses: captures fetched; others are counted drops without a request.
    index_server, data_server: base addresses.
    """

    name: str
    crawl: str
    urls: tuple[str, ...]
    user_agent: str
    extract: ExtractConfig = field(default_factory=ExtractConfig)
    block: UrlBlockList = field(default_factory=UrlBlockList)
    mime_types: tuple[str, ...] = ("text/html", "application/xhtml+xml")
    statuses: tuple[int, ...] = (200,)
    index_server: str = "https://index.commoncrawl.org"
    data_server: str = "https://data.commoncrawl.org"
    http: HttpLimits = field(default_factory=HttpLimits)

    version: ClassVar[int] = 5
    code_modules: ClassVar[tuple[str, ...]] = (
        "data.sources.common_crawl",
        "data.sources.http_fetch",
        *WarcSource.code_modules,
    )
    libraries: ClassVar[tuple[str, ...]] = WarcSource.libraries

    def __post_init__(self) -> None:
        if not CRAWL_NAME.fullmatch(self.crawl):
            raise ValueError(f"crawl is {self.crawl!r}: expected a name such as CC-MAIN-2026-30")
        if "@" not in self.user_agent and "://" not in self.user_agent:
            raise ValueError("user_agent must say how to reach you: a mail or web address in it")

    def shards(self) -> Sequence[dict[str, Any]]:
        """The index pages of every pattern: {"pattern", "page"}; "failed" says why where the server did not tell them.

        FetchError where it told none at all.
        """
        client = HttpClient(self.user_agent, self.http)
        shards: list[dict[str, Any]] = []
        for pattern in self.urls:
            try:
                pages = self._pages_of(client, pattern)
            except FetchError as error:
                shards.append({"pattern": pattern, "page": 0, "failed": str(error)})
            else:
                shards += [{"pattern": pattern, "page": page} for page in range(pages)]
        if shards and all("failed" in shard for shard in shards):
            raise FetchError(shards[0]["failed"])
        return [{**shard, "of": len(shards)} for shard in shards]

    def _pages_of(self, client: HttpClient, pattern: str) -> int:
        """How many pages the index has for a pattern. FetchError where the answer does not say."""
        url = self._query(pattern, showNumPages="true")
        body = client.get(url)
        try:
            answer = json.loads(body)
            return int(answer["pages"] if isinstance(answer, dict) else answer)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise FetchError(f"{url}: no number of pages in {body[:80]!r}") from error

    def inputs_key(self) -> Any:
        """Crawl and patterns: a crawl that was published does not change."""
        return [self.crawl, list(self.urls), self.block.inputs_key()]

    def documents(self, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """The captures of one index page, in index order."""
        client = HttpClient(self.user_agent, self.http)
        try:
            if "failed" in shard:
                raise FetchError(shard["failed"])
            index = client.get(self._query(shard["pattern"], page=shard["page"]))
        except FetchError as error:
            yield make_drop(
                self.name,
                f"{self.crawl}:{shard['pattern']}:{shard['page']}",
                "fetch_failed",
                value=str(error),
                meta={"pattern": shard["pattern"]},
            )
            return
        workers = share_of_cores(shard.get("of", 1))
        opened: ExtractionPool[tuple[str, dict[str, Any]]] = ExtractionPool(self.extract, workers=workers)
        with opened as pool:
            for (record, meta), found in pool.map(self._pages(client, index.splitlines(), shard)):
                values = {**meta, **found.meta}
                value = values.pop("value", None)
                if found.reason:
                    yield make_drop(self.name, record, found.reason, value=value, meta=values, text=found.text)
                else:
                    yield make_document(self.name, record, found.text, values)

    def _query(self, pattern: str, **more: Any) -> str:
        return f"{self.index_server}/{self.crawl}-index?{urlencode({'url': pattern, 'output': 'json', **more})}"

    def _pages(
        self, client: HttpClient, lines: Sequence[bytes], shard: Mapping[str, Any]
    ) -> Iterator[tuple[tuple[str, dict[str, Any]], Page | Extracted]]:
        blocked = self.block.build()
        reader = WarcSource(
            name=self.name, paths=("records",), extract=self.extract, block=self.block, statuses=self.statuses
        )
        seen: set[str] = set()
        for number, line in enumerate(lines):
            record = f"{self.crawl}:{shard['pattern']}:{shard['page']}:{number}"
            try:
                capture = json.loads(line)
                place = str(capture["filename"]), int(capture["offset"]), int(capture["length"])
                url, status, mime = str(capture["url"]), int(capture.get("status", 0)), str(capture.get("mime", ""))
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                yield (record, {}), Extracted("", {"value": str(error)}, "bad_index_line")
                continue
            if (name := f"{place[0]}:{place[1]}") in seen:
                yield (record, {"url": url}), Extracted("", {"value": name}, "repeated_id")
                continue
            seen.add(name)
            record = name
            meta = {"url": url, "capture": capture.get("timestamp"), "path": place[0], "offset": place[1]}
            reason = self._refusal(url, status, mime, place, blocked)
            if reason is not None:
                yield (record, meta), reason
                continue
            try:
                data = client.get(f"{self.data_server}/{place[0]}", start=place[1], length=place[2])
            except FetchError as error:
                yield (record, meta), Extracted("", {"value": str(error)}, "fetch_failed")
                continue
            found = next(reader.pages(io.BytesIO(data), blocked), None)
            if found is None:
                yield (record, meta), Extracted("", {}, "no_response_record")
            else:
                yield (record, {**found[0][1], **meta}), found[1]

    def _refusal(self, url: str, status: int, mime: str, place: tuple[str, int, int], blocked: Any) -> Extracted | None:
        """Why a capture is not fetched, or None."""
        if (rule := blocked.match(url)) is not None:
            return Extracted("", {"value": rule}, "url_blocked")
        if status not in self.statuses:
            return Extracted("", {"value": status}, "http_status")
        if mime not in self.mime_types:
            return Extracted("", {"value": mime}, "content_type")
        if not FILE_NAME.fullmatch(place[0]) or ".." in place[0] or place[1] < 0 or place[2] <= 0:
            return Extracted("", {"value": place[0]}, "bad_index_line")
        return None
