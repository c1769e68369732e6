"""Mutated pages, index lines, links, sitemaps and robots.txt."""

from __future__ import annotations

import gzip
import random
import time
from pathlib import Path
from typing import Any

import pytest

from data.document import Document
from data.sources import common_crawl
from data.sources.common_crawl import CommonCrawlSource
from data.sources.crawl_config import CrawlConfig
from data.sources.crawl_links import MAX_LINKS, links_of, robots_sitemaps, sitemap_links
from data.sources.crawl_urls import Scope, is_calendar
from data.sources.extract import ExtractConfig, Extracted, Page
from data.sources.html_files import HtmlFolder
from data.sources.limits import FetchError
from tests.data.sources.fuzz_files import LIMITS, ndjson
from tests.data.sources.test_web_archives import HTML, response
from tests.data.sources.wounds import SIZES, check, confuse_json, mutate, wound


@SIZES
@pytest.mark.real_data
def test_saved_pages_through_extraction(cases: int, real_data: Path, tmp_path: Path) -> None:
    """One item a page, in order, none later than its chain of extractors may take."""
    rng, pages = random.Random(16), sorted((real_data / "html").glob("*.gz"))
    for case in range(cases):
        data = pages[case % len(pages)].read_bytes()
        packed = case % 4 == 0  # else what is wounded is the page, not its compression
        (tmp_path / f"{case}.html").write_bytes(mutate(data if packed else gzip.decompress(data)[:60_000], rng))
    source = HtmlFolder(name="f", paths=(str(tmp_path),), limits=LIMITS, extract=ExtractConfig(seconds=5.0))
    seen, last = [], time.monotonic() + 60  # the start of the workers
    for shard in source.shards():
        for item in source.documents(shard):
            document = item if isinstance(item, Document) else item.document
            seen.append(document.meta["path"])
            assert time.monotonic() - last < 4 * 5.0, f"{seen[-1]} took too long"
            last = time.monotonic()
    assert seen == sorted(f"{case}.html" for case in range(cases))


class _Pool:
    """Extraction in this process: what is tested is the index."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: Any) -> None: ...
    def map(self, pages: Any) -> Any:
        for key, page in pages:
            yield key, Extracted(page.body.decode("latin-1"), {}) if isinstance(page, Page) else page


@SIZES
def test_index_lines(cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = [gzip.compress(response(f"https://x.example/{i}", HTML.encode())) for i in range(8)]
    starts = [sum(map(len, members[:i])) for i in range(8)]
    store, path = b"".join(members), tmp_path / "index"
    common = {"mime": "text/html", "status": "200", "filename": "crawl/x.warc.gz", "timestamp": "20260101000000"}
    index = ndjson(
        [{"url": f"https://x.example/{i}", "offset": str(starts[i]), "length": str(len(members[i])), **common}
         for i in range(8)]
    )  # fmt: skip

    class Client:
        def __init__(self, *_: Any) -> None: ...
        def get(self, url: str, *, start: int | None = None, length: int | None = None) -> bytes:
            if "showNumPages" in url:
                return b"1"
            if start is None or length is None:
                return path.read_bytes()
            url.encode("ascii")
            if len(data := store[start : start + length]) != length:
                raise FetchError(f"{len(data)} bytes")
            return data

    monkeypatch.setattr(common_crawl, "HttpClient", Client)
    monkeypatch.setattr(common_crawl, "ExtractionPool", _Pool)
    source = CommonCrawlSource(name="f", crawl="CC-MAIN-1", urls=("x.example/*",), user_agent="t@t.example")

    def look(case: int, wounded: bytes) -> None:
        kept, dropped = check(source)
        seen = len(wounded.splitlines())
        assert kept + dropped == seen, f"case {case}: {kept} kept and {dropped} dropped of {seen}"

    wound(index, path, 5 * cases, 17, look, confuse_json)


URLS = b" ".join(b"https://x.example/%d?b=1&a=%%20;jsessionid=1" % i for i in range(20))
LINKED = {
    "sitemap": b"<urlset>" + b"<url><loc>https://x.example/a?b=1</loc></url>" * 20 + b"</urlset>",
    "index": b"<sitemapindex><sitemap><loc>/b</loc></sitemap></sitemapindex>",
    "rss": b"<rss><channel><item><link>https://x.example/1</link></item></channel></rss>",
    "atom": b"<feed><entry><link rel='alternate' href='/2'/></entry></feed>",
    "list": URLS.replace(b" ", b"\n"),
    "zipped": gzip.compress(URLS.replace(b" ", b"\n")),
    "robots": b"User-agent: *\nDisallow: /x\nSitemap: https://x.example/s.xml\n" * 5,
    "html": b"<base href='http://x.example/d/'><a href='//x.example/%41'>x</a><link rel=next href='?p=2'>"
    b"<link rel=alternate type=application/rss+xml href=/feed><iframe src='http://[::1]/'></iframe>",
}  # fmt: skip


@SIZES
@pytest.mark.parametrize("kind", LINKED)
def test_links_of_pages_and_sitemaps(kind: str, cases: int, tmp_path: Path) -> None:
    """Whatever the bytes are: canonical URLs, each once, that the scope and the traps can judge."""
    scope = Scope(CrawlConfig(seeds=("https://x.example/",), folder=str(tmp_path), user_agent="t@t.example"))

    def look(case: int, wounded: bytes) -> None:
        found = [*links_of(wounded, "text/html", "https://x.example/"), *sitemap_links(wounded, "https://x.example/"),
                 robots_sitemaps(wounded, "https://x.example/")]  # fmt: skip
        for urls in found:
            assert len(set(urls)) == len(urls), f"case {case}: a link twice"
            for url in urls:
                url.encode()
                assert url.startswith(("http://", "https://"))
                assert isinstance(scope.refusal(url), str | None) and is_calendar(url) in (True, False)
        assert len(found[0]) <= MAX_LINKS

    wound(LINKED[kind], tmp_path / "x", 10 * cases, 18, look, confuse_link)


def confuse_link(data: bytes, rng: random.Random) -> bytes:
    """An address that is none."""
    strange = (
        b"http://[",
        b"http://x.example:99999/",
        b"//\xff/",
        b"http://[::1]:a/",
        b"javascript:x",
        b"http://\xe2\x84\x80/",
    )
    at = data.find(rng.choice((b"http", b"/", b"'")), rng.randrange(len(data)))
    return data[:at] + rng.choice(strange) + data[at + rng.choice((0, 5, 20)) :]


def test_robots_of_empty_lines_take_no_time() -> None:
    start = time.monotonic()
    assert robots_sitemaps(b"\n" * (1 << 19) + b"Sitemap: https://x.example/s.xml\n", "") == []
    assert robots_sitemaps(b"\n" * (1 << 18) + b"Sitemap: https://x.example/s.xml\n", "") == ["https://x.example/s.xml"]
    assert time.monotonic() - start < 2
