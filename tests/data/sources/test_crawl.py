"""The crawler against a server written for the test: obeys, stops at its limits, and goes on after kill -9."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from itertools import pairwise
from pathlib import Path

import pytest

from data.sources.crawl_archive import ArchiveWriter
from data.sources.crawl_config import CrawlConfig
from data.sources.crawl_frontier import Frontier, Task
from data.sources.crawl_links import links_of, sitemap_links
from data.sources.crawl_urls import Scope, canonical, private, trap
from data.sources.extract import ExtractConfig
from data.sources.warc import WarcSource
from data.sources.warc_records import iter_records
from tests.data.sources.helpers import read, reply, serve

ROOT = Path(__file__).resolve().parents[3]
WORDS = "The old mill by the river still turns when the water is high in spring. " * 3


class Site:
    """Pages 0..n-1 in a chain and a star, and everything that a crawler must survive."""

    def __init__(self, pages: int, *, delay: str = "", page_seconds: float = 0.0) -> None:
        self.pages, self.delay, self.page_seconds = pages, delay, page_seconds
        self.hits: Counter[str] = Counter()
        self.times: list[tuple[float, str]] = []
        self.lock = threading.Lock()
        self.other = ""

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path
        with self.lock:
            self.hits[path] += 1
            self.times.append((time.monotonic(), path))
        if path == "/robots.txt":
            return reply(
                handler,
                f"User-agent: *\nDisallow: /secret\n{self.delay}\nSitemap: /map.xml\n".encode(),
                kind="text/plain",
            )
        if path == "/map.xml":
            base = f"http://{handler.headers['Host']}"
            body = f'<urlset xmlns="x"><url><loc>{base}/from-sitemap</loc></url></urlset>'
            return reply(handler, body.encode(), kind="application/xml")
        if path == "/":
            links = "".join(f'<a href="/page/{i}">p</a>' for i in range(self.pages))
            more = (
                '<link rel="alternate" type="application/rss+xml" href="/feed">'
                '<a href="/secret/1">s</a><a href="/loop/a">l</a><a href="/missing">m</a>'
                '<a href="/slow">w</a><a href="/huge">h</a>'
                '<a href="/calendar/2024-01">c</a><a href="/deep/x">d</a><a href="/file.zip">z</a>'
                '<a href="/image">i</a>'
                f'<a href="http://10.0.0.1/private">p</a><a href="{self.other}">o</a><a href="http://[::1]:1/x">6</a>'
                '<a href="http://0x7f000001/x">x</a><a href="/busy">b</a><a rel="nofollow" href="/nofollow">n</a>'
            )  # fmt: skip
            return reply(handler, f"<html><body>{links}{more}</body></html>".encode())
        if path.startswith("/page/"):
            time.sleep(self.page_seconds)
            return reply(handler, f"<html><title>{path}</title><p>{WORDS}{path}</p></html>".encode())
        if path == "/loop/a":
            return reply(handler, b"", status=302, Location="/loop/b")
        if path == "/loop/b":
            return reply(handler, b"", status=302, Location="/loop/a")
        if path == "/slow":
            time.sleep(5)
            return reply(handler, b"late")
        if path == "/huge":
            return reply(handler, b"x" * 3_000_000)
        if path == "/image":
            return reply(handler, b"\x89PNG", kind="image/png")
        if path.startswith("/calendar/"):
            year, month = map(int, path.split("/")[2].split("-"))
            following = f"{year + month // 12}-{month % 12 + 1:02d}"
            return reply(handler, f'<a href="/calendar/{following}">next</a>'.encode())
        if path.startswith("/deep/"):
            return reply(handler, f'<a href="{path}/x">deeper</a><a href="{path}?a={time.time()}">again</a>'.encode())
        if path == "/busy":
            return reply(handler, b"no", status=503) if self.hits[path] < 2 else reply(handler, b"<p>now</p>")
        if path == "/feed":
            item = f"<item><link>http://{handler.headers['Host']}/from-feed</link></item>"
            return reply(handler, f"<rss><channel>{item}</channel></rss>".encode(), kind="application/rss+xml")
        if path in ("/from-sitemap", "/from-feed"):
            return reply(handler, f"<html><p>{WORDS}</p></html>".encode())
        return reply(handler, b"not here", status=404)


def start(folder: Path, address: str, **settings: object) -> subprocess.Popen[bytes]:
    """`python -m data.crawl` on a config file written for the test."""
    host = address.removeprefix("http://")
    values = {"delay_seconds": 0.0, "timeout_seconds": 1.5, "max_page_bytes": 1_000_000, "retries": 1, **settings}
    arguments = ", ".join(f"{name}={value!r}" for name, value in values.items())
    (folder / "crawl_test.py").write_text(
        "from data.sources.crawl_config import CrawlConfig\n\n\ndef get_crawl():\n"
        f"    return CrawlConfig(folder='out', seeds=({address + '/'!r},), user_agent='testbot (me@uni.edu)',"
        f" allow_hosts=({host!r},), {arguments})\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "data.crawl", "--config", "crawl_test.py"]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def stored(folder: Path) -> Counter[str]:
    """URL paths of the archive's responses with how often each was stored."""
    found: Counter[str] = Counter()
    for path in sorted((folder / "out" / "warc").glob("*.warc.gz")):
        with path.open("rb") as raw:
            for record in iter_records(raw, 1 << 24):
                assert not record.fault
                if url := record.headers.get("WARC-Target-URI"):
                    found["/" + url.split("/", 3)[3]] += 1
    return found


def test_it_obeys_robots_and_survives_what_servers_do(tmp_path: Path) -> None:
    site = Site(10)
    with serve(Site(1)) as other, serve(site) as address:
        site.other = f"{other}/page/0"
        process = start(tmp_path, address, concurrency_per_host=4, max_depth=200)
        output = process.communicate(timeout=100)[0].decode()
    assert process.returncode == 0, output
    found = stored(tmp_path)
    assert all(found[f"/page/{i}"] == 1 for i in range(10)) and found["/from-sitemap"] == 1, output
    assert found["/from-feed"] == 1 and site.hits["/feed"] == 1, output
    assert not any(path.startswith("/secret") for path in site.hits) and site.hits["/nofollow"] == 0
    assert site.hits["/loop/a"] == 1 and site.hits["/loop/b"] == 1 and found["/missing"] == 1
    assert site.hits["/slow"] == 2 and "timeout" in output and site.hits["/file.zip"] == 0
    assert found["/huge"] == 0 and "page_too_large" in output and found["/image"] == 0 and "content_type" in output
    assert 0 < sum(path.startswith("/calendar") for path in site.hits) <= 101 and "calendar" in output
    assert sum(path.startswith("/deep") for path in site.hits) < 310 and "path_repeats" in output
    assert site.hits["/busy"] == 2 and found["/busy"] == 1
    assert "private_address" in output and "other_host" not in output  # the other server is on a loopback address too
    source = WarcSource(name="c", paths=(str(tmp_path / "out" / "warc"),), extract=ExtractConfig(chain=("plain",)))
    documents, _ = read(source)
    assert sum("/page/" in d.meta["url"] for d in documents) == 10


@pytest.mark.parametrize("how", ["compressed", "redirected"])
def test_robots_is_obeyed_however_it_arrives(tmp_path: Path, how: str) -> None:
    site = Site(3)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/robots.txt" and how == "redirected":
            return reply(handler, b"", status=301, Location="/moved/robots.txt")
        if handler.path in ("/robots.txt", "/moved/robots.txt"):
            body = b"User-agent: *\nDisallow: /secret\nDisallow: /page/1\n"
            if how == "redirected":
                return reply(handler, body, kind="text/plain")
            return reply(handler, gzip.compress(body), kind="text/plain", Content_Encoding="gzip")
        return site(handler)

    with serve(answer) as address:
        process = start(tmp_path, address, deny=("/deep", "/calendar", "/slow", "/huge", "/loop"))
        output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0, output
    assert not any(path.startswith(("/secret", "/page/1")) for path in site.hits), output
    assert site.hits["/page/0"] == 1 and stored(tmp_path)["/page/2"] == 1, output


@pytest.mark.parametrize(("failures", "pages"), [(1, 3), (9, 0)])
def test_a_server_whose_robots_fails_is_asked_again_and_then_left_alone(
    tmp_path: Path, failures: int, pages: int
) -> None:
    """RFC 9309: a robots.txt that cannot be had forbids all."""
    site = Site(3)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/robots.txt" and site.hits["asked"] < failures:
            site.hits["asked"] += 1
            return reply(handler, b"too busy", status=503)
        return site(handler)

    with serve(answer) as address:
        process = start(tmp_path, address, deny=("/deep", "/calendar", "/slow", "/huge", "/loop"), retries=2)
        output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0, output
    assert sum(path.startswith("/page/") for path in site.hits) == pages, output
    assert ("robots_unreachable" in output) == (pages == 0), output


def test_after_kill_9_nothing_is_missed_and_only_flights_are_repeated(tmp_path: Path) -> None:
    site = Site(40, page_seconds=0.1)
    deny = ("/deep", "/calendar", "/slow", "/huge", "/busy", "/loop")
    with serve(site) as address:
        for stop in (signal.SIGKILL, signal.SIGKILL, signal.SIGINT):
            process = start(tmp_path, address, concurrency_per_host=3, deny=deny)
            before = len([path for path in site.hits if path.startswith("/page")])
            deadline = time.monotonic() + 60
            while (
                len([p for p in list(site.hits) if p.startswith("/page")]) < before + 8 and time.monotonic() < deadline
            ):
                time.sleep(0.02)
            process.send_signal(stop)
            output = process.communicate(timeout=60)[0].decode()
            assert (process.returncode == -signal.SIGKILL) == (stop == signal.SIGKILL), output
        assert "queued in out" in output  # Ctrl-C: what is in flight is stored, then the counts so far
        process = start(tmp_path, address, concurrency_per_host=3, deny=deny)
        output = process.communicate(timeout=100)[0].decode()
    assert process.returncode == 0, output
    found = stored(tmp_path)
    assert all(found[f"/page/{i}"] == 1 for i in range(40)), output  # each once: neither missed nor stored twice
    repeated = sum(count - 1 for path, count in site.hits.items() if path.startswith("/page"))
    assert repeated <= 2 * 3  # three in flight at each of two kills; Ctrl-C repeats nothing


def test_crawl_delay_and_page_limit(tmp_path: Path) -> None:
    site = Site(30, delay="Crawl-delay: 0.4")
    with serve(site) as address:
        process = start(tmp_path, address, max_pages=5, concurrency_per_host=4, deny=("/deep", "/slow"))
        output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0, output
    assert (
        sum(
            stored(tmp_path)[path]
            for path in stored(tmp_path)
            if path not in ("/robots.txt", "/sitemap.xml", "/map.xml", "/feed")
        )
        == 5
    )
    times = [moment for moment, path in site.times if path.startswith("/page")]
    assert all(later - earlier > 0.3 for earlier, later in pairwise(times)) and len(times) >= 2


def test_limits_of_bytes_and_depth_and_tries_that_a_kill_cost(tmp_path: Path) -> None:
    from scrapy.http import HtmlResponse

    from data.sources.crawl_spider import Crawl, CrawlSpider

    config = CrawlConfig(
        folder=str(tmp_path),
        seeds=("https://a.example/",),
        user_agent="b (m@u.edu)",
        max_bytes=1000,
        max_depth=1,
        delay_seconds=0.0,
    )
    crawl = Crawl(config)
    assert not crawl.full() and crawl.frontier.has_queued()
    order = [crawl.frontier.take(9) for _ in range(4)]
    assert [task.url if task else None for task in order] == [
        "https://a.example/robots.txt",
        "https://a.example/sitemap.xml",
        "https://a.example/",
        None,
    ]
    file, length = crawl.archive.write("https://a.example/", 200, [], b"x" * 1000, "")
    crawl.frontier.done("https://a.example/", 1000, file, length, [{"url": "https://a.example/1", "depth": 1}])
    crawl.close()
    crawl = Crawl(config)
    assert crawl.full()  # the bytes of the crawl before count
    task = crawl.frontier.take(9)
    assert task is not None and task.kind == "robots" and task.attempts == 0  # the kill's try does not
    page = Task("https://a.example/1", "page", 1, 0, 0)
    spider = CrawlSpider()
    spider.crawl = crawl
    for depth, found in ((0, 1), (1, 0)):
        response = HtmlResponse(page.url, body=b"<a href='/2'>2</a>", headers={"Content-Type": "text/html"})
        assert len(spider._found(replace(page, depth=depth), response, {"content-type": "text/html"})) == found
    crawl.close()


def test_bad_configs_are_one_line(tmp_path: Path) -> None:
    from data.sources.crawl_spider import Crawl

    good = {"folder": "x", "seeds": ("https://a.example/",), "user_agent": "bot (me@uni.edu)"}
    assert CrawlConfig(**good)  # type: ignore[arg-type]
    for name, value, message in (
        ("user_agent", "Mozilla/5.0", "contact"),
        ("seeds", (), "seeds is empty"),
        ("seeds", ("ftp://a",), "http"),
        ("deny", ("(",), "regular expression"),
        ("max_pages", 0, "positive"),
        ("retries", -1, "negative"),
        ("timeout_seconds", 0.0, "positive"),
    ):
        with pytest.raises(ValueError, match=message):
            CrawlConfig(**{**good, name: value})  # type: ignore[arg-type]
    for seed in ("http://127.0.0.1:1", "http://localhost/", "https://0x7f.1/"):
        config = CrawlConfig(**{**good, "folder": str(tmp_path), "seeds": (seed,)})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="private or loopback"):
            Crawl(config)


def test_urls_have_one_form_and_traps_are_seen() -> None:
    assert canonical("HTTP://A.Example:80/b/../c?z=1&a=2&utm_source=x#f") == canonical("http://a.example/c?a=2&z=1")
    assert canonical("/x;jsessionid=1?sid=2", "https://a.example/y") == "https://a.example/x"
    for bad in (
        "mailto:x@y",
        "javascript:1",
        "http://",
        "http://u:p@a.example/",
        "http://[::1",
        "//",
        "http://a:99999/",
    ):
        assert canonical(bad) is None
    assert (
        trap("https://a.example/" + "x" * 600)
        and trap("https://a.example/a/b/a/b/a/b/c")
        and trap("https://a.example/?" + "a=1&" * 9)
    )
    assert trap("https://a.example/2024/05/a-fine-post?page=2") is None
    private_hosts = (
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "169.254.169.254",
        "::1",
        "fd00::1",
        "::ffff:10.0.0.1",
        "2130706433",
        "0x7f.1",
    )
    assert (
        all(private(host) for host in private_hosts)
        and private("93.184.216.34") is False
        and private("a.example") is None
    )
    scope = Scope(CrawlConfig(folder="x", seeds=("https://a.example/",), user_agent="b (m@u.edu)", deny=("/no",)))
    refused = {
        url: scope.refusal(url)
        for url in ("https://a.example/no", "https://b.example/", "http://localhost/", "https://a.example/x.jpg")
    }
    assert list(refused.values()) == ["denied", "other_host", "private_address", "file_type"] and not scope.refusal(
        "https://a.example/ok"
    )
    assert not scope.refusal("https://www.a.example/")  # where a.example itself may redirect


def test_a_name_that_resolves_to_a_private_address_is_refused() -> None:
    from scrapy.exceptions import IgnoreRequest

    from data.sources.crawl_guards import GuardedResolver

    resolver = GuardedResolver.__new__(GuardedResolver)
    resolver.private_names = set()
    resolver.scope = Scope(
        CrawlConfig(
            folder="x", seeds=("https://a.example/",), user_agent="b (m@u.edu)", allow_hosts=("lab.example:8000",)
        )
    )
    assert resolver._check("93.184.216.34", "a.example") == "93.184.216.34"
    assert resolver._check("10.0.0.1", "lab.example") == "10.0.0.1"  # named in the config
    for address in ("127.0.0.1", "169.254.169.254", "::ffff:10.0.0.1"):
        with pytest.raises(IgnoreRequest, match="private_address"):
            resolver._check(address, "a.example")
    assert resolver.private_names == {"a.example"}


def test_a_private_name_is_counted_as_such_by_a_whole_crawl(tmp_path: Path) -> None:
    (tmp_path / "crawl_test.py").write_text(
        "import socket\n\nfrom data.sources.crawl_config import CrawlConfig\n\n\ndef get_crawl():\n"
        "    socket.gethostbyname = lambda name: '10.0.0.1'\n"
        "    return CrawlConfig(folder='out', seeds=('http://inside.example/',), user_agent='testbot (me@uni.edu)',\n"
        "        delay_seconds=0.0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "data.crawl", "--config", "crawl_test.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "private_address" in done.stdout and "no_such_host" not in done.stdout, done.stdout


def test_pages_whose_frontier_is_gone_are_not_deleted(tmp_path: Path) -> None:
    from data.sources.crawl_spider import Crawl

    config = CrawlConfig(folder=str(tmp_path), seeds=("https://a.example/",), user_agent="b (m@u.edu)")
    Crawl(config).close()
    (tmp_path / "frontier.sqlite").unlink()
    crawl = Crawl(config)  # nothing was stored: nothing is lost
    file, length = crawl.archive.write("https://a.example/", 200, [], b"<p>x</p>", "")
    crawl.frontier.done("https://a.example/", 8, file, length, [])
    crawl.close()
    (tmp_path / "frontier.sqlite").unlink()
    before = (tmp_path / "warc" / file).read_bytes()
    for _ in range(2):  # the first refusal leaves an empty frontier behind, which is new still
        with pytest.raises(ValueError, match="frontier is gone"):
            Crawl(config)
        assert (tmp_path / "warc" / file).read_bytes() == before


def test_faults_of_config_files_and_folders_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from data.crawl import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "file").write_text("")
    (tmp_path / "base" / "frontier.sqlite").mkdir(parents=True)
    made = "from data.sources.crawl_config import CrawlConfig\ndef get_crawl():\n    return CrawlConfig({})\n"
    good = "seeds=('https://a.example/',), user_agent='bot (me@uni.edu)', folder={!r}"
    cases = {
        "unknown": (made.format(good.format("out") + ", max_page=3"), "max_page"),
        "syntax": ("def get_crawl(:\n", "line 1: "),
        "name": ("CrawlConfig()\n", "NameError"),
        "below_file": (made.format(good.format("file/out")), "folder 'file/out' cannot be used"),
        "no_database": (made.format(good.format("base")), "folder 'base' cannot be used"),
    }
    for name, (text, message) in cases.items():
        (tmp_path / f"crawl_{name}.py").write_text(text)
        assert main(["--config", f"crawl_{name}.py"]) == 1, name
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1 and message in said, said


def test_links_feeds_and_sitemaps() -> None:
    page = b"""<html><head><base href="https://b.example/d/">
    <link rel="alternate" type="application/rss+xml" href="/feed">
    </head><a href="x">1</a><a href="x#y">2</a><a href="mailto:a@b">3</a><a href="http://[bad">4</a></html>"""
    assert links_of(page, "", "https://a.example/") == (["https://b.example/d/x"], ["https://b.example/feed"])
    assert links_of(b'<meta name="robots" content="NOFOLLOW"><a href="/x">1</a>', "", "https://a.example/") == ([], [])
    rss = b"<rss><channel><link>https://a.example/</link><item><link>https://a.example/1</link></item></channel></rss>"
    assert sitemap_links(rss, "https://a.example/") == (["https://a.example/1"], [])
    atom = b'<feed xmlns="http://www.w3.org/2005/Atom"><entry><link href="/2"/></entry></feed>'
    assert sitemap_links(atom, "https://a.example/") == (["https://a.example/2"], [])
    index = b"<sitemapindex><sitemap><loc>https://a.example/s.xml</loc></sitemap></sitemapindex>"
    assert sitemap_links(index, "https://a.example/") == ([], ["https://a.example/s.xml"])
    assert sitemap_links(b"<a>", "https://a.example/") == ([], []) and sitemap_links(b"https://a.example/3\n", "")[0]


def test_the_frontier_commits_pages_with_their_archive(tmp_path: Path) -> None:
    frontier = Frontier(tmp_path / "f.sqlite")
    assert frontier.add("https://a.example/1") and not frontier.add("https://a.example/1")
    task = frontier.take(1)
    assert task is not None and task.url == "https://a.example/1" and frontier.take(1) is None
    with pytest.raises(ValueError, match="in use"):
        Frontier(tmp_path / "f.sqlite")
    archive = ArchiveWriter(tmp_path / "warc", frontier.archive(), "bot", new=True)
    file, length = archive.write(task.url, 200, [("Content-Type", "text/html")], b"<p>x</p>", "")
    frontier.done(task.url, 8, file, length, [{"url": "https://a.example/2"}])
    archive.write("https://a.example/2", 200, [], b"never committed", "")
    archive.close()
    frontier.close()
    frontier = Frontier(tmp_path / "f.sqlite")
    ArchiveWriter(tmp_path / "warc", frontier.archive(), "bot", new=False).close()
    assert (tmp_path / "warc" / file).stat().st_size == length and frontier.counts()["queued"] == 1
    frontier.close()
