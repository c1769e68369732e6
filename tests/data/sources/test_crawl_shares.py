"""A crawl in shares: each host belongs to one process, its pause holds from round to round, nothing is missed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from data.engine_ray import Ray
from data.sources.crawl_config import CrawlConfig
from data.sources.crawl_frontier import Frontier
from data.sources.crawl_shares import _dealt, share_of
from data.sources.extract import ExtractConfig
from data.sources.warc import WarcSource
from data.sources.warc_records import iter_records
from tests.data.sources.helpers import read, reply

ROOT = Path(__file__).resolve().parents[3]
HOSTS = [f"127.0.0.{number}" for number in (2, 3, 4, 5)]
PAGES = 6  # of each host
PAUSE = 0.5  # seconds


class Sites:
    """Hosts whose pages link to the next page of every host: found only where links are handed over."""

    def __init__(self) -> None:
        self.port = 0
        self.times: dict[str, list[float]] = {host: [] for host in HOSTS}
        self.hits: Counter[str] = Counter()

    def __call__(self, handler: BaseHTTPRequestHandler, host: str) -> None:
        self.times[host].append(time.monotonic())
        self.hits[host + handler.path] += 1
        if not handler.path.startswith("/page/"):
            return reply(handler, b"not here", status=404)
        number = int(handler.path.rpartition("/")[2]) + 1
        links = "".join(f'<a href="http://{h}:{self.port}/page/{number}">x</a>' for h in HOSTS if number < PAGES)
        return reply(handler, f"<html><p>The mill by the river still turns, {handler.path}.</p>{links}</html>".encode())


@contextmanager
def serving(sites: Sites) -> Iterator[str]:
    """One server for each host, all on one port; the first page's address."""
    with ExitStack() as stack:
        for host in HOSTS:

            class Handler(BaseHTTPRequestHandler):
                here = host

                def do_GET(self) -> None:
                    sites(self, self.here)

                def log_message(self, *_: Any) -> None:
                    return

            server = ThreadingHTTPServer((host, sites.port), Handler)
            sites.port = server.server_address[1]
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
        yield f"http://{HOSTS[0]}:{sites.port}/page/0"


def start(folder: Path, seed: str, **settings: object) -> subprocess.Popen[bytes]:
    values = {"delay_seconds": PAUSE, "timeout_seconds": 5.0, "shares": 3, "allow": ("/page/",), **settings}
    values |= {"folder": "out", "seeds": (seed,), "user_agent": "testbot (me@uni.edu)", "allow_hosts": tuple(HOSTS)}
    (folder / "crawl_test.py").write_text(
        "from data.engine_ray import Ray\nfrom data.sources.crawl_config import CrawlConfig\n\n\ndef get_crawl():\n"
        f"    return CrawlConfig({', '.join(f'{name}={value!r}' for name, value in values.items())})\n"
    )
    command = [sys.executable, "-m", "data.crawl", "--config", "crawl_test.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def stored(folder: Path) -> dict[str, Counter[str]]:
    """{share: pages in its archive with how often each was stored}."""
    found: dict[str, Counter[str]] = {}
    for path in sorted((folder / "out").glob("share-*/warc/*.warc.gz")):
        with path.open("rb") as raw:
            urls = [record.headers.get("WARC-Target-URI") or "" for record in iter_records(raw, 1 << 24)]
        found[path.parts[-3]] = Counter(url for url in urls if "/page/" in url)
    return found


def check(sites: Sites, folder: Path, output: str) -> None:
    """Each page once, each host in one share, the pause of each host held whatever process asked."""
    found = stored(folder)
    every = sum(found.values(), Counter())
    expected = {f"http://{host}:{sites.port}/page/{n}" for host in HOSTS for n in range(PAGES) if n or host == HOSTS[0]}
    assert set(every) == expected and set(every.values()) == {1}, output
    for share, urls in found.items():
        assert {f"share-{share_of(url.split('/')[2], 3):05d}" for url in urls} <= {share}
    assert sum(bool(urls) for urls in found.values()) > 1
    for host, times in sites.times.items():
        close = [later - earlier for earlier, later in pairwise(times[1:]) if later - earlier < PAUSE / 2]
        assert not close, f"{host}: {close}"  # half, as the server's clock is read late on a busy machine


def test_each_host_is_one_share_s_and_links_are_handed_over(tmp_path: Path) -> None:
    sites = Sites()
    with serving(sites) as seed:
        output = start(tmp_path, seed).communicate(timeout=200)[0].decode()
    check(sites, tmp_path, output)
    assert "round 2: " in output and f"{4 * (PAGES - 1) + 1} pages, " in output.splitlines()[-1], output
    documents, _ = read(WarcSource(name="c", paths=(str(tmp_path / "out"),), extract=ExtractConfig(chain=("plain",))))
    assert len(documents) == 4 * (PAGES - 1) + 1
    assert "in 3 shares, not 4" in start(tmp_path, seed, shares=4).communicate(timeout=100)[0].decode()
    assert "a crawl in shares" in start(tmp_path, seed, shares=1).communicate(timeout=100)[0].decode()


@pytest.mark.slow
def test_a_killed_crawl_in_shares_goes_on_and_keeps_its_limit(tmp_path: Path) -> None:
    sites = Sites()
    with serving(sites) as seed:
        process = start(tmp_path, seed, round_seconds=1.0)
        deadline = time.monotonic() + 200
        while sum(sites.hits.values()) < 14:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        output = start(tmp_path, seed, max_pages=17).communicate(timeout=200)[0].decode()
        assert sum(sum(stored(tmp_path).values(), Counter()).values()) == 17, output
        output = start(tmp_path, seed).communicate(timeout=200)[0].decode()
    check(sites, tmp_path, output)


def test_pages_left_are_dealt_to_those_that_have_something_to_do() -> None:
    assert _dealt(10, 100, [1, 4, 5]) == {1: (4, 33), 4: (3, 33), 5: (3, 33)}
    assert _dealt(2, 1, [1, 4, 5]) == {1: (1, 1), 4: (1, 1)}


def test_the_frontier_waits_as_long_as_the_process_before_it_would(tmp_path: Path) -> None:
    frontier = Frontier(tmp_path / "f.sqlite", owns=lambda host: host == "a.example", pause=0.1)
    assert frontier.add("https://a.example/1") and frontier.add("https://a.example/2")
    assert not frontier.add("https://b.example/1", depth=2)
    assert frontier.unsent() == [{"url": "https://b.example/1", "kind": "page", "depth": 2, "redirects": 0}]
    frontier.mark_sent(["https://b.example/1"])
    assert not frontier.add("https://b.example/1") and not frontier.unsent()  # handed over once
    assert frontier.take(1) is not None
    frontier.set_pause("a.example", 1.5)
    frontier.done("https://a.example/1", 1, "crawl-00000.warc.gz", 1, [])
    frontier.close()
    frontier = Frontier(tmp_path / "f.sqlite", pause=0.1)
    asked = time.monotonic()
    assert frontier.take(1) is None and frontier.has_queued()
    while (task := frontier.take(1)) is None:
        time.sleep(0.02)
    assert task.url == "https://a.example/2" and 1.0 < time.monotonic() - asked < 1.6
    frontier.close()


def test_shares_are_dealt_by_name_and_not_by_port() -> None:
    assert share_of("a.example:8000", 16) == share_of("a.example", 16) and share_of("[::1]:80", 7) == share_of(
        "[::1]", 7
    )
    assert len({share_of(f"host{number}.example", 16) for number in range(200)}) == 16
    with pytest.raises(ValueError, match="shares=0"):
        CrawlConfig(folder="x", seeds=("https://a.example/",), user_agent="b (m@u.edu)", shares=0)
    assert CrawlConfig(folder="x", seeds=("https://a.example/",), user_agent="b (m@u.edu)", engine=Ray(), shares=2)
