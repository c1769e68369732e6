"""One process of a crawl: Scrapy until nothing is left, a limit is reached or the time is over."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

from data.sources.crawl_spider import Crawl, CrawlSpider, settings_of


def run_crawl(
    crawl: Crawl, watch: Callable[[Crawl], Callable[[], None]] | None = None
) -> tuple[dict[str, int], dict[str, int]]:
    """(counts, reasons why pages were not stored) of the whole crawl so far; the crawl is left open.

    watch: called when Scrapy is about to start; returns what is called at the end. Once a process: Twisted's reactor
    does not start again.
    """
    from scrapy.crawler import CrawlerProcess
    from scrapy.exceptions import ScrapyDeprecationWarning

    warnings.filterwarnings("ignore", category=ScrapyDeprecationWarning)  # settings that older versions need
    logging.disable(logging.WARNING)  # Scrapy sets up its own log, and says much
    process: Any = CrawlerProcess(settings_of(crawl))
    logging.getLogger("scrapy.downloadermiddlewares.robotstxt").setLevel(logging.CRITICAL)  # counted
    process.crawl(CrawlSpider)
    stop = watch(crawl) if watch is not None else None
    try:
        process.start()
    finally:
        if stop is not None:
            stop()
    return crawl.frontier.counts(), crawl.frontier.reasons()
