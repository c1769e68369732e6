"""WARC, WET, WAT, Common Crawl look-up and extraction: real archives, broken ones, hostile ones."""

from __future__ import annotations

import gzip
import io
import json
import time
import zlib
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from itertools import pairwise
from pathlib import Path

import pytest
import zstandard
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from data.sources.common_crawl import CommonCrawlSource
from data.sources.extract import ExtractConfig, Extracted, ExtractionPool, Page
from data.sources.extract_methods import decode_page, language_hint
from data.sources.html_files import HtmlFolder
from data.sources.http_fetch import FetchError, HttpClient, HttpLimits
from data.sources.limits import ReadLimits
from data.sources.url_block import UrlBlockList
from data.sources.warc import WarcSource
from tests.data.sources.helpers import read, reasons, reply, serve

PARAGRAPHS = "".join(
    f"<p>Paragraph {i} tells how the river number {i} runs through the valley, past mills and old bridges.</p>"
    for i in range(8)
)
HEAD = "<head><title>Rivers</title></head>"
HTML = f"<html lang='en'>{HEAD}<body><article><h1>Rivers</h1>{PARAGRAPHS}</article></body></html>"
FAST = ExtractConfig(chain=("plain",))


def response(url: str, body: bytes, *headers: str, status: str = "200 OK", kind: str = "text/html") -> bytes:
    """One WARC response record, not compressed."""
    record = WarcRecord()
    record.init_headers(WarcRecordType.response)
    record.headers["WARC-Target-URI"] = url
    record.headers["Content-Type"] = "application/http;msgtype=response"
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Type: {kind}", *headers])
    record.set_bytes_content(f"{head}\r\n\r\n".encode() + body)
    stream = io.BytesIO()
    record.write(stream)
    return stream.getvalue()


def warc(tmp_path: Path, *records: bytes, name: str = "x.warc.gz") -> str:
    (tmp_path / name).write_bytes(b"".join(gzip.compress(record) for record in records))
    return str(tmp_path / name)


def test_records_of_a_file_that_is_compressed_as_one_have_their_own_ids(tmp_path: Path) -> None:
    pages = [response(f"https://a.example/{i}", HTML.encode()) for i in range(5)]
    (tmp_path / "x.warc.gz").write_bytes(gzip.compress(b"".join(pages)))
    documents, drops = read(WarcSource(name="w", paths=(str(tmp_path),), extract=FAST))
    assert len({d.id for d in documents}) == 5 and not drops
    assert [d.meta["url"][-1] for d in documents] == list("01234")


def test_resources_are_pages_too(tmp_path: Path) -> None:
    records = []
    for url, kind, body in (
        ("https://a.example/page", "text/html; charset=utf-8", HTML),
        ("file:///notes.txt", "text/plain", "Notes."),
        ("https://a.example/x.png", "image/png", "PNG"),
        ("metadata://gnu.org/software/wget/warc/wget.log", "text/plain", "a log"),
    ):
        record = WarcRecord()
        record.init_headers(WarcRecordType.resource)
        record.headers["WARC-Target-URI"], record.headers["Content-Type"] = url, kind
        record.set_bytes_content(body.encode())
        stream = io.BytesIO()
        record.write(stream)
        records.append(stream.getvalue())
    documents, drops = read(WarcSource(name="w", paths=(warc(tmp_path, *records),), extract=FAST))
    assert documents[0].text.startswith("Rivers") and documents[1].text == "Notes." and len(documents) == 2
    assert documents[0].meta["content_type"] == "text/html" and reasons(drops) == {"content_type": 1}


def test_deflated_pages_and_the_charset_of_plain_text(tmp_path: Path) -> None:
    bare = zlib.compress(HTML.encode())[2:-4]
    records = (
        response("https://a.example/1", zlib.compress(HTML.encode()), "Content-Encoding: deflate"),
        response("https://a.example/2", bare, "Content-Encoding: deflate"),
        response("https://a.example/3", HTML.encode(), "Content-Encoding: deflate"),  # decoded by the crawler
        response("https://a.example/4", zlib.compress(bytes(1 << 24)), "Content-Encoding: deflate"),
        response("https://a.example/5", "Ça – é".encode("mac-roman"), kind="text/plain; charset=macintosh"),
        response("https://a.example/6", "Ça – é".encode(), kind="text/plain; charset=iso-8859-1"),
    )
    documents, drops = read(WarcSource(name="w", paths=(warc(tmp_path, *records),), extract=FAST))
    assert len({d.text for d in documents[:3]}) == 1 and documents[0].text.startswith("Rivers")
    assert [d.text for d in documents[3:]] == ["Ça – é", "Ça – é"] and reasons(drops) == {"page_too_large": 1}


@pytest.mark.real_data
def test_the_real_crawl_gives_its_fifteen_responses(real_data: Path) -> None:
    documents, drops = read(WarcSource(name="cc", paths=(str(real_data / "warc" / "sample-creativecommons.warc.gz"),)))
    assert len(documents) == 15 and not drops
    assert [d.meta["url"] for d in documents[:2]] == [
        "https://creativecommons.org/",
        "https://creativecommons.org/mission/",
    ]
    assert all(d.meta["extractor"] == "trafilatura" and d.meta["encoding"] == "utf-8" for d in documents)
    assert "international nonprofit organization" in documents[1].text and documents[1].meta["crawl_date"]
    assert [d.meta["offset"] for d in documents[:3]] == [856, 12746, 24218]


@pytest.mark.real_data
def test_the_wikipedia_page_as_warc_and_as_wet(real_data: Path) -> None:
    documents, _ = read(WarcSource(name="w", paths=(str(real_data / "warc" / "whirlwind.warc.gz"),)))
    assert len(documents) == 1 and documents[0].meta["language_hint"] == "an" and "Escopete" in documents[0].text
    (wet,), drops = read(WarcSource(name="w", paths=(str(real_data / "warc" / "whirlwind.warc.wet.gz"),)))
    assert wet.text.startswith("Escopete - Biquipedia") and not drops and wet.meta["group"] == "an.wikipedia.org"


@pytest.mark.real_data
def test_one_flipped_gzip_member_costs_one_page(real_data: Path, tmp_path: Path) -> None:
    data = bytearray((real_data / "warc" / "sample-creativecommons.warc.gz").read_bytes())
    data[60000:60040] = bytes(40)  # inside the page at 46426
    (tmp_path / "x.warc.gz").write_bytes(data)
    documents, drops = read(WarcSource(name="cc", paths=(str(tmp_path),), extract=FAST))
    assert len(documents) == 14 and len(drops) == 1
    assert drops[0].document.id.endswith(":46426") and drops[0].drop.reason in ("corrupt_record", "truncated_record")


@pytest.mark.real_data
def test_a_truncated_archive_loses_only_its_last_page(real_data: Path, tmp_path: Path) -> None:
    data = (real_data / "warc" / "sample-creativecommons.warc.gz").read_bytes()
    (tmp_path / "x.warc.gz").write_bytes(data[:100_000])
    documents, drops = read(WarcSource(name="cc", paths=(str(tmp_path),), extract=FAST))
    assert len(documents) == 5 and len(drops) == 1 and drops[0].drop.reason in ("truncated_record", "corrupt_record")


def test_plain_gzip_and_zstd_archives_read_the_same(tmp_path: Path) -> None:
    records = [response(f"https://a.example/{i}", HTML.encode()) for i in range(5)]
    compressor = zstandard.ZstdCompressor()
    (tmp_path / "a.warc").write_bytes(b"".join(records))
    (tmp_path / "b.warc.gz").write_bytes(b"".join(map(gzip.compress, records)))
    (tmp_path / "c.warc.zst").write_bytes(b"".join(map(compressor.compress, records)))
    texts = []
    for name in ("a.warc", "b.warc.gz", "c.warc.zst"):
        documents, drops = read(WarcSource(name="w", paths=(str(tmp_path / name),), extract=FAST))
        assert len(documents) == 5 and not drops
        texts.append([d.text for d in documents])
    assert texts[0] == texts[1] == texts[2]


def test_each_reason_is_counted(tmp_path: Path) -> None:
    path = warc(
        tmp_path,
        response("https://a.example/1", HTML.encode()),
        response("https://a.example/2", b"gone", status="404 Not Found"),
        response("https://a.example/3", b"%PDF", kind="application/pdf"),
        response("https://ads.example/4", HTML.encode()),
        response("https://b.example/private/5", HTML.encode()),
        response("https://a.example/6", b"plain text", kind="text/plain"),
        response("https://a.example/7", gzip.compress(HTML.encode()), "Content-Encoding: gzip"),
        response("https://a.example/8", gzip.compress(bytes(20 << 20)), "Content-Encoding: gzip"),
        response("https://a.example/9", b"x" * (3 << 20)),
    )
    (tmp_path / "domains").write_text("# a list\nads.example\n")
    block = UrlBlockList(paths=(str(tmp_path / "domains"),), urls=("http://b.example/private",))
    documents, drops = read(
        WarcSource(name="w", paths=(path,), extract=FAST, block=block, limits=ReadLimits(max_record_bytes=2 << 20))
    )
    assert [d.meta["url"][-1] for d in documents] == ["1", "6", "7"] and documents[2].text == documents[0].text
    assert reasons(drops) == {
        "http_status": 1,
        "content_type": 1,
        "url_blocked": 2,
        "page_too_large": 1,
        "record_too_large": 1,
    }


def test_a_wrong_length_does_not_swallow_the_neighbour_silently(tmp_path: Path) -> None:
    records = [response(f"https://a.example/{i}", HTML.encode()) for i in range(4)]
    length = int(records[1].split(b"Content-Length: ")[1].split(b"\r\n")[0])
    records[1] = records[1].replace(b"Content-Length: %d" % length, b"Content-Length: %d" % (length + 500))
    for name, data in (("a.warc", b"".join(records)), ("a.warc.gz", b"".join(map(gzip.compress, records)))):
        (tmp_path / name).write_bytes(data)
        documents, drops = read(WarcSource(name="w", paths=(str(tmp_path / name),), extract=FAST))
        assert [d.meta["url"][-1] for d in documents] == ["0", "2", "3"]
        assert reasons(drops) == {"wrong_record_length": 1}


def request(url: str) -> bytes:
    """A record of a kind that is not read."""
    record = WarcRecord()
    record.init_headers(WarcRecordType.request)
    record.headers["WARC-Target-URI"] = url
    record.set_bytes_content(b"GET / HTTP/1.1\r\n\r\n")
    stream = io.BytesIO()
    record.write(stream)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["gzip", "zstd", "plain"])
@pytest.mark.parametrize("where", ["head", "magic", "tail"])
def test_a_broken_record_is_counted_once_and_not_as_its_neighbour(tmp_path: Path, kind: str, where: str) -> None:
    """Each third page is damaged: at its first bytes, behind its magic, or at its end."""
    pack = {"gzip": gzip.compress, "zstd": zstandard.ZstdCompressor().compress, "plain": bytes}[kind]
    data, starts = b"", []
    for number in range(9):
        url = f"https://a.example/{number}"
        data += pack(request(url))
        page = bytearray(pack(response(url, HTML.encode())))
        if number % 3 == 1:
            at = {"magic": 0, "head": 4, "tail": len(page) - 12}[where]
            page[at : at + 12] = bytes(12)
        starts.append(len(data))
        data += page
    (tmp_path / "x.warc").write_bytes(data)
    documents, drops = read(WarcSource(name="w", paths=(str(tmp_path / "x.warc"),), extract=FAST))
    kept = [int(d.meta["url"][-1]) for d in documents]
    assert not {0, 2, 3, 5, 6, 8} - {*kept}, (kept, reasons(drops))
    if where == "tail":  # a page may have been read whole before the damage is met
        assert len(documents) + len(drops) >= 9
    else:
        assert [d.document.id for d in drops] == [f"w:x.warc:{starts[number]}" for number in (1, 4, 7)]


def test_wat_gives_title_description_and_links(tmp_path: Path) -> None:
    page = {
        "Head": {"Title": "Rivers", "Metas": [{"name": "description", "content": "All of them."}]},
        "Links": [{"path": "A@/href", "url": "/one"}, {"bad": 1}],
    }
    envelope = {"Envelope": {"Payload-Metadata": {"HTTP-Response-Metadata": {"HTML-Metadata": page}}}}
    records = []
    for body in (json.dumps(envelope).encode(), b"{}", b"{broken"):
        record = WarcRecord()
        record.init_headers(WarcRecordType.metadata)
        record.headers["WARC-Target-URI"] = "https://a.example/"
        record.headers["Content-Type"] = "application/json"
        record.set_bytes_content(body)
        stream = io.BytesIO()
        record.write(stream)
        records.append(stream.getvalue())
    documents, drops = read(WarcSource(name="w", paths=(warc(tmp_path, *records, name="x.wat.gz"),)))
    assert documents[0].text == "Rivers\n\nAll of them." and documents[0].meta["links"] == ["/one"]
    assert reasons(drops) == {"no_main_text": 2}


def test_block_lists_match_domains_and_paths_only() -> None:
    block = UrlBlockList(domains=("bad.example",), urls=("https://a.example/x/y",)).build()
    blocked = (
        "http://bad.example/",
        "https://www.bad.example:8080/p",
        "https://sub.bad.example",
        "https://a.example/x/y/z?q",
    )
    free = ("https://notbad.example/", "https://a.example/x/yy", "https://example/", "not a url", "http://[::1")
    assert all(block.match(url) for url in blocked) and not any(block.match(url) for url in free)


# ---- extraction


def test_encodings_come_from_header_then_meta_then_the_bytes() -> None:
    text = "<html><body><p>naïve café façade über straße, déjà vu à la carte</p></body></html>" * 5
    assert decode_page(text.encode("latin-1"), "text/html; charset=iso-8859-1")[0] == text
    meta = f'<meta charset="windows-1252">{text}'
    assert decode_page(meta.encode("cp1252"), "text/html") == (meta, "cp1252")
    assert decode_page(text.encode(), "text/html")[0] == text
    assert decode_page(("\ufeff" + text).encode("utf-16-le"), "")[0].lstrip("\ufeff") == text
    assert language_hint('<html class="x" lang="pt-BR">') == "pt-br" and language_hint("<html>") is None


def test_a_page_that_hangs_is_stopped_and_the_next_one_is_read() -> None:
    slow = b"<html><body>" + b"<p>word word <a href=x>link</a></p>" * 100_000
    config = ExtractConfig(chain=("trafilatura", "justext"), seconds=0.7)
    with ExtractionPool(config, workers=1) as pool:
        pool.extract(Page(b"<p>warm</p>"))
        start = time.monotonic()
        results = dict(pool.map([("slow", Page(slow)), ("good", Page(HTML.encode()))]))
    assert time.monotonic() - start < 20
    assert results["slow"].reason == "extractor_failed"
    assert results["slow"].meta["extractor_failed"] == ["trafilatura: timeout 0.7 s", "justext: timeout 0.7 s"]
    assert "river number 3" in results["good"].text and results["good"].meta["title"] == "Rivers"


def test_a_page_that_eats_memory_is_stopped_and_named() -> None:
    with ExtractionPool(ExtractConfig(chain=("trafilatura", "plain"), memory_mb=40, seconds=30), workers=1) as pool:
        large = pool.extract(Page(b"<html><body>" + b"<div><i>x</i></div>" * 400_000))
        good = pool.extract(Page(HTML.encode()))
    assert large.meta["extractor_failed"] and good.text and not good.reason


def test_order_is_kept_and_the_chain_is_named() -> None:
    pages = [(i, Page(HTML.replace("river", f"river-{i}").encode())) for i in range(30)]
    items = [*pages[:10], (99, Extracted("", {}, "url_blocked")), *pages[10:]]
    with ExtractionPool(ExtractConfig(), workers=2) as pool:
        results = list(pool.map(items))
    assert [key for key, _ in results] == [*range(10), 99, *range(10, 30)]
    assert all(f"river-{key} number" in found.text for key, found in results if key != 99)
    with ExtractionPool(ExtractConfig(min_chars=10**6), workers=1) as pool:
        short = pool.extract(Page(HTML.encode()))
    failed = [line.partition(":")[0] for line in short.meta["extractor_failed"]]
    assert failed == ["trafilatura", "justext", "plain"] and "river number 3" in short.text


def test_headings_and_lists_stay_as_light_markdown() -> None:
    page = HTML.replace("</article>", "<h2>Mills</h2><ul><li>The first old mill</li><li>The second</li></ul></article>")
    with ExtractionPool(ExtractConfig(), workers=1) as pool:
        text = pool.extract(Page(page.encode())).text
    assert "## Mills" in text and "- The first old mill" in text


@pytest.mark.real_data
def test_a_folder_of_real_pages(real_data: Path) -> None:
    documents, drops = read(HtmlFolder(name="h", paths=(str(real_data / "html"),)))
    assert len(documents) == 40 and not drops and all(d.meta["extractor"] for d in documents)


# ---- Common Crawl


def _index_line(url: str, offset: int, length: int, **more: object) -> bytes:
    fields = {"url": url, "mime": "text/html", "status": "200", "filename": "crawl/x.warc.gz"}
    return json.dumps({**fields, "offset": str(offset), "length": str(length), **more}).encode()


@pytest.mark.real_data
def test_common_crawl_look_up_and_byte_ranges(real_data: Path) -> None:
    archive = (real_data / "warc" / "sample-creativecommons.warc.gz").read_bytes()
    spots = [r.stream_pos for r in ArchiveIterator(io.BytesIO(archive), record_types=WarcRecordType.response)]
    starts = [r.stream_pos for r in ArchiveIterator(io.BytesIO(archive))] + [len(archive)]
    ends = dict(pairwise(starts))
    lines = [_index_line(f"https://x.example/{spot}", spot, ends[spot] - spot) for spot in spots[:4]]
    lines += [b"{broken", _index_line("https://x.example/pdf", 1, 2, mime="application/pdf")]
    lines += [_index_line("https://x.example/up", 1, 2, filename="../secret"), _index_line("https://x/", 10**9, 5)]
    requests: list[tuple[str, str | None]] = []
    busy = [True]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        requests.append((handler.path, handler.headers.get("Range")))
        if "showNumPages" in handler.path:
            return reply(handler, json.dumps({"pages": 2, "pageSize": 5}).encode(), kind="application/json")
        if "-index?" in handler.path:
            if busy.pop() if busy else False:
                return reply(handler, b"slow down", status=503)
            page = int(handler.path.rpartition("page=")[2])
            return reply(handler, b"\n".join(lines if page == 0 else lines[:0]))
        first, last = (int(part) for part in handler.headers["Range"].removeprefix("bytes=").split("-"))
        if first >= len(archive):
            return reply(handler, b"", status=416)
        return reply(handler, archive[first : last + 1], status=206)

    with serve(answer) as address:
        source = CommonCrawlSource(
            name="cc",
            crawl="CC-MAIN-2026-30",
            urls=("x.example/*",),
            user_agent="test (me@uni.example)",
            index_server=address,
            data_server=address,
            extract=FAST,
            http=HttpLimits(backoff=0.01),
        )
        assert len(source.shards()) == 2
        documents, drops = read(source)
    assert [d.meta["offset"] for d in documents] == spots[:4] and documents[1].meta["url"].endswith(str(spots[1]))
    assert reasons(drops) == {"bad_index_line": 2, "content_type": 1, "fetch_failed": 1}
    assert ("/crawl/x.warc.gz", f"bytes={spots[0]}-{ends[spots[0]] - 1}") in requests


def test_an_index_page_that_does_not_come_costs_that_page_only(tmp_path: Path) -> None:
    member = gzip.compress(response("https://x.example/1", HTML.encode()))

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if "down.example" in handler.path:
            return reply(handler, b"", status=404)
        if "odd.example" in handler.path:
            return reply(handler, b'{"error": "no"}')
        if "showNumPages" in handler.path:
            return reply(handler, b'{"pages": 2}')
        if "page=0" in handler.path:
            return reply(handler, b"busy", status=503, Retry_After="3600")
        if "page=1" in handler.path:
            return reply(handler, _index_line("https://x.example/1", 0, len(member)))
        return reply(handler, member, status=206)

    with serve(answer) as address:
        source = CommonCrawlSource(
            name="cc",
            crawl="CC-MAIN-2026-30",
            urls=("down.example/*", "odd.example/*", "x.example/*"),
            user_agent="test (me@uni.example)",
            index_server=address,
            data_server=address,
            extract=FAST,
            http=HttpLimits(backoff=0.01, retries=2, total_seconds=0.3),
        )
        start = time.monotonic()
        documents, drops = read(source)
        assert time.monotonic() - start < 20  # an hour is what the server asked for
        assert len(documents) == 1 and reasons(drops) == {"fetch_failed": 3}
        assert "no number of pages" in str(drops[1].drop.value) and "HTTP 503" in str(drops[2].drop.value)
        with pytest.raises(FetchError, match="HTTP 404"):
            replace(source, urls=("down.example/*",)).shards()


def test_fetching_ends_on_silent_dripping_looping_and_huge_answers() -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/silent":
            time.sleep(3)
        elif handler.path == "/loop":
            reply(handler, b"", status=302, Location="/loop")
        elif handler.path == "/huge":
            reply(handler, bytes(1 << 20))
        else:
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            for _ in range(50):
                handler.wfile.write(b"x")
                handler.wfile.flush()
                time.sleep(0.05)

    limits = HttpLimits(read_seconds=0.3, total_seconds=0.8, retries=1, backoff=0.01, max_bytes=1 << 16)
    with serve(answer) as address:
        client = HttpClient("test (me@uni.example)", limits)
        for path in ("/silent", "/loop", "/huge", "/drip"):
            start = time.monotonic()
            with pytest.raises(FetchError):
                client.get(address + path)
            assert time.monotonic() - start < 2.5
    with pytest.raises(ValueError, match="how to reach you"):
        CommonCrawlSource(name="x", crawl="CC-MAIN-1", urls=("a",), user_agent="anonymous")
