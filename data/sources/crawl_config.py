"""What a crawl is told: where to start, what to leave, how polite to be."""

from __future__ import annotations

import re
from dataclasses import dataclass

from data.engine import LocalPool
from data.engine_ray import Ray


@dataclass(frozen=True, kw_only=True)
class CrawlConfig:
    """Settings of `python -m data.crawl`.

    folder: where WARC files and the frontier go; the same folder goes on where a crawl stopped.
    seeds: pages to start from; their hosts, with and without `www.`, are the crawl's (others only where `allow` names
        them).
    user_agent: name and contact, a mail or web address: servers' owners must be able to reach you.
    allow, deny: regular expressions searched in whole URLs; with `allow`, a URL must match one of them.
    max_pages, max_bytes, max_page_bytes, max_depth: limits; bytes are of response bodies.
    delay_seconds: between requests to one host; robots.txt's Crawl-delay raises it. concurrency_per_host: at once.
    timeout_seconds: for one whole page. retries: of a page that failed.
    allow_hosts: names or addresses ("127.0.0.1:8000") reached although they are private or loopback.
    content_types: others are not stored.
    shares: parts of the crawl, each with hosts of its own and in one process at a time; more than one are crawled side
        by side (see data.sources.crawl_shares) by the engine's workers, in rounds of round_seconds.
    """

    folder: str
    seeds: tuple[str, ...]
    user_agent: str
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    max_pages: int = 10_000
    max_bytes: int = 10 << 30
    max_page_bytes: int = 8 << 20
    max_depth: int = 20
    delay_seconds: float = 1.0
    concurrency_per_host: int = 1
    timeout_seconds: float = 60.0
    retries: int = 2
    allow_hosts: tuple[str, ...] = ()
    content_types: tuple[str, ...] = ("text/html", "application/xhtml+xml", "text/plain", "text/xml", "application/xml")
    shares: int = 1
    round_seconds: float = 300.0
    engine: LocalPool | Ray = LocalPool()

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("seeds is empty: expected at least one http(s) address to start from")
        for seed in self.seeds:
            if not re.match(r"https?://[^/\s]+", seed):
                raise ValueError(f"seed {seed!r}: expected an address that starts with http:// or https://")
        if not re.search(r"[^\s@]+@[^\s@]+\.[^\s@]+|https?://\S+", self.user_agent):
            raise ValueError(f"user_agent is {self.user_agent!r}: expected a name and a contact, as 'lab (me@uni.edu)'")
        for pattern in (*self.allow, *self.deny):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from error
        if min(self.max_pages, self.max_bytes, self.max_page_bytes, self.concurrency_per_host) <= 0:
            raise ValueError("max_pages, max_bytes, max_page_bytes and concurrency_per_host must be positive")
        if min(self.max_depth, self.retries, self.delay_seconds) < 0 or self.timeout_seconds <= 0:
            raise ValueError(
                "max_depth, retries and delay_seconds must not be negative, and timeout_seconds be positive"
            )
        if self.shares < 1 or self.round_seconds <= 0:
            raise ValueError(f"shares={self.shares}, round_seconds={self.round_seconds}: both must be positive")
