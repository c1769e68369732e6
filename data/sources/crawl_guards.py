"""No request of a crawl goes to a private address: neither one that is written in a URL nor one that a name stands for.
And robots.txt is read as it is meant, however it arrives.

All parts are Scrapy's to make; the setting CRAWL holds the crawl, with its `scope` and its `private_names`.
"""

from __future__ import annotations

from typing import Any

from scrapy.exceptions import IgnoreRequest
from scrapy.http import Request, Response, TextResponse
from scrapy.resolver import CachingThreadedResolver

from data.sources.crawl_urls import Scope, host_of, private
from data.sources.warc import decode_payload

MAX_ROBOTS_BYTES = 1 << 20  # of a decoded robots.txt; RFC 9309 asks for 500 KiB at least


class GuardedResolver(CachingThreadedResolver):
    """Names that resolve to private addresses do not resolve, whatever the link said before."""

    @classmethod
    def from_crawler(cls, crawler: Any, reactor: Any) -> GuardedResolver:
        resolver = super().from_crawler(crawler, reactor)
        crawl = crawler.settings["CRAWL"]
        resolver.scope, resolver.private_names = crawl.scope, crawl.private_names  # type: ignore[attr-defined]
        return resolver

    def getHostByName(self, name: str, timeout: Any = ()) -> Any:  # Twisted's name
        found = super().getHostByName(name, timeout)
        return found.addCallback(self._check, name)

    def _check(self, address: str, name: str) -> str:
        scope: Scope = self.scope  # type: ignore[attr-defined]
        if private(address) and not any(host.partition(":")[0] == name for host in scope.named_hosts):
            self.private_names.add(name)  # type: ignore[attr-defined]  # the error itself arrives as one of the DNS
            raise IgnoreRequest(f"private_address: {name} is {address}")
        return address


class AddressGuard:
    """Downloader middleware: no request, robots.txt included, goes to an address that is written as a private one."""

    def __init__(self, crawl: Any) -> None:
        self._crawl = crawl

    @classmethod
    def from_crawler(cls, crawler: Any) -> AddressGuard:
        return cls(crawler.settings["CRAWL"])

    def process_request(self, request: Request) -> None:
        """Refuse before a connection is made."""
        if self._crawl.scope.address_refused(request.url):
            raise IgnoreRequest("private_address")


class RobotsReader:
    """Downloader middleware: a robots.txt that was sent compressed is decoded; pages stay as sent, for the archive.

    Scrapy parses what it gets, and compressed bytes forbid nothing. Nor does the page of an error of the server, where
    all is forbidden (RFC 9309, section 2.3.1.4): it is asked again, as often as a page, before that is assumed.
    """

    def __init__(self, crawl: Any) -> None:
        self._crawl = crawl

    @classmethod
    def from_crawler(cls, crawler: Any) -> RobotsReader:
        return cls(crawler.settings["CRAWL"])

    def process_response(self, request: Request, response: Response) -> Request | Response:
        """The robots.txt that Scrapy itself asked for, as text; any other answer as it is."""
        if "task" in request.meta:
            return response
        if response.status >= 500 or response.status == 429:
            return self._unreachable(request)
        coding = (response.headers.get(b"Content-Encoding") or b"").decode("latin-1")
        if not coding:
            return response
        body = decode_payload(response.body, {"content-encoding": coding}, MAX_ROBOTS_BYTES).data
        return response.replace(body=body[:MAX_ROBOTS_BYTES])

    def process_exception(self, request: Request, exception: Exception) -> Request | Response | None:
        """A robots.txt that does not come in time."""
        late = "task" not in request.meta and "Timeout" in type(exception).__name__
        return self._unreachable(request) if late else None

    def _unreachable(self, request: Request) -> Request | Response:
        tries = request.meta.get("robots_tries", 0)
        if tries < self._crawl.config.retries:
            return request.replace(meta={**request.meta, "robots_tries": tries + 1}, dont_filter=True)
        self._crawl.without_robots.add(host_of(request.url))
        return TextResponse(request.url, body=b"User-agent: *\nDisallow: /", request=request)
