"""The crawl itself, on Scrapy: its scheduler is the frontier, its spider stores pages and queues what they lead to.

Scrapy does the fetching: connections, concurrency, delays, timeouts, robots.txt. What it would keep in memory (queue,
seen URLs, redirects, retries) is kept in the frontier instead, which survives a kill.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import scrapy
from scrapy import signals
from scrapy.core.scheduler import BaseScheduler
from scrapy.exceptions import IgnoreRequest, StopDownload
from scrapy.http import Request, Response
from scrapy.settings import default_settings

from data.sources.crawl_archive import ArchiveWriter
from data.sources.crawl_config import CrawlConfig
from data.sources.crawl_frontier import Frontier, Task
from data.sources.crawl_guards import AddressGuard, GuardedResolver, RobotsReader
from data.sources.crawl_links import links_of, redirect_of, robots_sitemaps, sitemap_links, text_header
from data.sources.crawl_urls import Scope, canonical, host_of
from data.sources.warc import decode_payload

MAX_REDIRECTS = 5
MAX_CRAWL_DELAY = 60.0  # seconds: a robots.txt that asks for more is answered at this pace
RETRY_STATUSES = (408, 425, 429, 500, 502, 503, 504)


class Crawl:
    """What scheduler, spider and guards share: config, scope, frontier, archive.

    owns: whether a host is this share's; seconds: after the first request, in which others may begin.
    """

    def __init__(
        self, config: CrawlConfig, *, owns: Callable[[str], bool] = lambda host: True, seconds: float = math.inf
    ) -> None:
        self.config, self.scope = config, Scope(config)
        self._seconds, self._end = seconds, math.inf
        seeds = [self._seed(seed) for seed in config.seeds]
        folder = Path(config.folder)
        self.frontier = Frontier(folder / "frontier.sqlite", owns=owns, pause=config.delay_seconds)
        try:
            self.archive = ArchiveWriter(
                folder / "warc", self.frontier.archive(), config.user_agent, new=self.frontier.is_new()
            )
        except BaseException:
            self.frontier.close()
            raise
        self.private_names: set[str] = set()  # names that resolved to private addresses
        self.without_robots: set[str] = set()  # hosts whose robots.txt could not be had
        self.in_flight: set[str] = set()
        self.spider: Any = None  # set when Scrapy makes it
        counts = self.frontier.counts()
        self.pages, self.bytes = counts["pages"], counts["bytes"]
        for url in filter(lambda seed: owns(host_of(seed)), seeds):
            base = "/".join(url.split("/", 3)[:3])
            self.frontier.add(f"{base}/robots.txt", kind="robots")
            self.frontier.add(f"{base}/sitemap.xml", kind="sitemap")
            self.frontier.add(url)

    def _seed(self, seed: str) -> str:
        url = canonical(seed)
        if url is None:
            raise ValueError(f"seed {seed!r} is no address that can be fetched")
        if self.scope.address_refused(url):
            raise ValueError(f"seed {seed!r} is a private or loopback address: name it in allow_hosts to crawl it")
        return url

    def __deepcopy__(self, memo: dict[int, Any]) -> Crawl:
        return self  # Scrapy copies its settings; this is the one that all of them share

    def full(self) -> bool:
        """Whether a limit is reached, what is in flight counted in."""
        if self.in_flight and self._end == math.inf:
            self._end = time.monotonic() + self._seconds
        if time.monotonic() > self._end:
            return True
        return self.pages + len(self.in_flight) >= self.config.max_pages or self.bytes >= self.config.max_bytes

    def close(self) -> None:
        """Close the files."""
        self.archive.close()
        self.frontier.close()


class FrontierScheduler(BaseScheduler):
    """Hands the frontier's URLs to Scrapy's engine."""

    def __init__(self, crawl: Crawl) -> None:
        self._crawl = crawl

    @classmethod
    def from_crawler(cls, crawler: Any) -> FrontierScheduler:
        return cls(crawler.settings["CRAWL"])

    def has_pending_requests(self) -> bool:
        return not self._crawl.full() and self._crawl.frontier.has_queued()

    def enqueue_request(self, request: Request) -> bool:
        return False  # everything is queued through the frontier

    def next_request(self) -> Request | None:
        if self._crawl.full():
            return None
        task = self._crawl.frontier.take(self._crawl.config.concurrency_per_host)
        if task is None:
            return None
        self._crawl.in_flight.add(task.url)
        spider = self._crawl.spider
        return Request(
            task.url,
            callback=spider.parse,
            errback=spider.failed,
            dont_filter=True,
            meta={"task": task, "handle_httpstatus_all": True, "dont_obey_robotstxt": task.kind == "robots"},
        )


class CrawlSpider(scrapy.Spider):
    """Stores each page and queues what it leads to."""

    name = "sluice"
    crawl: Crawl

    @classmethod
    def from_crawler(cls, crawler: Any, *arguments: Any, **keywords: Any) -> CrawlSpider:
        spider = super().from_crawler(crawler, *arguments, **keywords)
        spider.crawl = crawler.settings["CRAWL"]
        spider.crawl.spider = spider
        crawler.signals.connect(spider.headers, signal=signals.headers_received)
        crawler.signals.connect(spider.robots, signal=signals.robots_parsed)
        return spider

    async def start(self) -> AsyncIterator[Any]:
        """Nothing: the frontier holds the seeds."""
        nothing: tuple[Any, ...] = ()
        for request in nothing:
            yield request

    def headers(self, headers: Any, request: Request, **_: Any) -> None:
        """Stop before the body of what is not wanted arrives."""
        task = request.meta.get("task")
        kind = (headers.get(b"Content-Type") or b"").decode("latin-1").partition(";")[0].strip().lower()
        if isinstance(task, Task) and task.kind == "page" and kind and kind not in self.crawl.config.content_types:
            raise StopDownload(fail=True)

    def robots(self, robotparser: Any, request: Request) -> None:
        """Raise the delay of a host to the Crawl-delay of its robots.txt."""
        asked = robotparser.crawl_delay(self.crawl.config.user_agent)
        if asked is None or self.crawler.engine is None:
            return
        delay = max(self.crawl.config.delay_seconds, min(float(asked), MAX_CRAWL_DELAY))
        self.crawl.frontier.set_pause(host_of(request.url), delay)
        downloader = self.crawler.engine.downloader
        key = downloader.get_slot_key(request)
        downloader.per_slot_settings[key] = {**downloader.per_slot_settings.get(key, {}), "delay": delay}
        if key in downloader.slots:
            downloader.slots[key].delay = delay

    def parse(self, response: Response, **_: Any) -> Iterator[Any]:
        """Commit a page: record on disk, then state and links in one transaction."""
        task: Task = response.meta["task"]
        crawl = self.crawl
        crawl.in_flight.discard(task.url)
        if response.status in RETRY_STATUSES and task.attempts < crawl.config.retries:
            crawl.frontier.failed(task.url, f"http_{response.status}", retries=crawl.config.retries)
            return iter(())
        pairs = text_header(response.headers)
        headers = {name.lower(): value for name, value in pairs}
        try:
            found = self._found(task, response, headers)
        except Exception:  # a page may break a parser in any way; it is stored all the same
            crawl.frontier.refuse("links_not_read")
            found = []
        address = str(response.ip_address or "")
        file, length = crawl.archive.write(task.url, response.status, pairs, response.body, address)
        crawl.frontier.done(task.url, len(response.body), file, length, found, f"http_{response.status}")
        crawl.pages += task.kind == "page"
        crawl.bytes += len(response.body)
        return iter(())

    def _found(self, task: Task, response: Response, headers: dict[str, str]) -> list[dict[str, Any]]:
        """What to queue, as arguments of Frontier.add."""
        target = redirect_of(response.status, headers, task.url)
        if target is not None:
            if task.redirects >= MAX_REDIRECTS:
                self.crawl.frontier.refuse("too_many_redirects")
                return []
            return self._wanted([target], task.kind, task.depth, task.redirects + 1)
        if response.status != 200:
            return []
        body = decode_payload(response.body, headers, self.crawl.config.max_page_bytes).data
        if task.kind == "robots":
            return self._wanted(robots_sitemaps(body, task.url), "sitemap", 0)
        if task.kind in ("sitemap", "feed"):
            pages, sitemaps = sitemap_links(body, task.url)
            further = self._wanted(sitemaps, "sitemap", task.depth + 1) if task.depth < 3 else []
            return self._wanted(pages, "page", 1) + further
        kind = headers.get("content-type", "text/html").partition(";")[0].strip().lower()
        if task.depth >= self.crawl.config.max_depth or kind not in ("text/html", "application/xhtml+xml"):
            return []
        pages, feeds = links_of(body, headers.get("content-type", ""), task.url)
        return self._wanted(pages, "page", task.depth + 1) + self._wanted(feeds, "feed", task.depth + 1)

    def _wanted(self, urls: list[str], kind: str, depth: int, redirects: int = 0) -> list[dict[str, Any]]:
        kept = []
        for url in urls:
            reason = self.crawl.scope.refusal(url)
            if reason == "file_type" and kind != "page":
                reason = None  # sitemap.xml.gz
            if reason == "not_allowed" and kind != "page" and host_of(url) in self.crawl.scope.hosts:
                reason = None  # a sitemap leads to pages that are allowed
            if reason is not None:
                self.crawl.frontier.refuse(reason)
            else:
                kept.append({"url": url, "kind": kind, "depth": depth, "redirects": redirects})
        return kept

    def failed(self, failure: Any) -> None:
        """Count a page that did not come, or queue it again."""
        request = failure.request
        task: Task = request.meta["task"]
        self.crawl.in_flight.discard(task.url)
        reason, again = reason_of(failure.value)
        if reason == "no_such_host" and urlsplit(task.url).hostname in self.crawl.private_names:
            reason = "private_address"
        if reason == "robots" and host_of(task.url) in self.crawl.without_robots:
            reason = "robots_unreachable"
        self.crawl.frontier.failed(task.url, reason, retries=self.crawl.config.retries if again else -1)


def reason_of(error: BaseException) -> tuple[str, bool]:
    """(reason, whether another try may help) of a failed download."""
    text = f"{type(error).__name__}: {error}"
    if "private_address" in text:
        return "private_address", False
    if isinstance(error, IgnoreRequest):
        return "robots", False
    if isinstance(error, StopDownload):
        return "content_type", False
    if "Cancelled" in text or "larger than" in text or "maxsize" in text.lower():
        return "page_too_large", False
    if "Timeout" in text:
        return "timeout", True
    if "DNS" in text:
        return "no_such_host", False
    return "connection", True


def settings_of(crawl: Crawl) -> dict[str, Any]:
    """Scrapy's settings for a crawl; everything not named here is Scrapy's default."""
    config = crawl.config
    resolver = "TWISTED_DNS_RESOLVER" if hasattr(default_settings, "TWISTED_DNS_RESOLVER") else "DNS_RESOLVER"  # by age
    return {
        "CRAWL": crawl,
        "USER_AGENT": config.user_agent,
        "ROBOTSTXT_OBEY": True,
        "ROBOTSTXT_USER_AGENT": config.user_agent.split("/")[0].split(" ")[0],
        "SCHEDULER": FrontierScheduler,
        resolver: GuardedResolver,
        "DOWNLOADER_MIDDLEWARES": {
            AddressGuard: 50,
            RobotsReader: 590,  # RedirectMiddleware stays: of robots.txt, since pages ask for all statuses
            "scrapy.downloadermiddlewares.redirect.MetaRefreshMiddleware": None,
            "scrapy.downloadermiddlewares.retry.RetryMiddleware": None,
            "scrapy.downloadermiddlewares.httpcompression.HttpCompressionMiddleware": None,
            "scrapy.downloadermiddlewares.cookies.CookiesMiddleware": None,
            "scrapy.downloadermiddlewares.offsite.OffsiteMiddleware": None,
        },
        "CONCURRENT_REQUESTS": 64,
        "CONCURRENT_REQUESTS_PER_DOMAIN": config.concurrency_per_host,
        "DOWNLOAD_DELAY": config.delay_seconds,
        "RANDOMIZE_DOWNLOAD_DELAY": False,
        "DOWNLOAD_TIMEOUT": config.timeout_seconds,
        "DOWNLOAD_MAXSIZE": config.max_page_bytes,
        "DOWNLOAD_WARNSIZE": 0,
        "REDIRECT_MAX_TIMES": MAX_REDIRECTS,
        "DEFAULT_REQUEST_HEADERS": {"Accept": "text/html,application/xhtml+xml,*/*;q=0.5", "Accept-Encoding": "gzip"},
        "TELNETCONSOLE_ENABLED": False,
        "LOG_LEVEL": "ERROR",
        "LOGSTATS_INTERVAL": 0,
    }
