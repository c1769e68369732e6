"""Web pages: a polite crawl into WARC files, their main text, and a small model of it.

    python -m data.crawl --config configs/source_web.py          polite: a page a second; stops at 500 pages
    python -m train.main --config configs/source_web.py

SLUICE_REAL_DATA (default: inputs) names a folder with warc/ (WARC and WET files, plain or .gz) and html/ (saved pages).
The crawl writes to inputs/crawl/warc: add that folder to the paths of `WarcSource` to read it.

Cost of the dataset (`python -m data.main`), measured on two x86-64 cores with other work on both: 16 seconds for 57
pages. Result: 54 pages (0.2 MB), five of them held out; cleaning drops one, two repeat another. With the training of
200 steps: 4 minutes 41 seconds.
"""

import os
from dataclasses import replace

from configs import quickstart
from data.clean.recipes import prose
from data.clean.stage import cleaning
from data.heldout import HeldOut
from data.sources.crawl_config import CrawlConfig
from data.sources.html_files import HtmlFolder
from data.sources.url_block import UrlBlockList
from data.sources.warc import WarcSource
from train.config import Config

INPUTS = os.environ.get("SLUICE_REAL_DATA", "inputs")


def get_crawl() -> CrawlConfig:
    """Five hundred pages of Python's documentation. Put your own address in `user_agent` before you start it."""
    return CrawlConfig(
        folder="inputs/crawl",
        seeds=("https://docs.python.org/3/tutorial/",),
        user_agent="sluice-example (https://example.org/contact)",
        allow=(r"^https://docs\.python\.org/3/(tutorial|library)/",),
        max_pages=500,
    )


def get_config() -> Config:
    """The quickstart's model and recipe on extracted pages."""
    base = quickstart.get_config()
    block = UrlBlockList(domains=("doubleclick.net",))
    sources = (
        WarcSource(name="warc", paths=(f"{INPUTS}/warc",), block=block),
        HtmlFolder(name="html", paths=(f"{INPUTS}/html",)),
    )
    heldout = HeldOut(fraction=0.1)  # a host is on one side, a saved page is a group of its own
    stages = (*cleaning(default=prose()), *base.data.stages[-4:-2], heldout, base.data.stages[-1])
    return replace(
        base,
        name="source_web",
        run_dir="runs/source_web",
        data=replace(base.data, path="datasets/source_web", sources=sources, stages=stages),
        loader=replace(base.loader, weights=()),
        train=replace(base.train, num_steps=200),
    )
