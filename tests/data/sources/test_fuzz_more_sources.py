"""Mutated compression, archives, repositories, indexes, links and pages: what is more than one file of records."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import random
import subprocess
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from data.document import Document
from data.sources import common_crawl, git_objects
from data.sources.array_records import TfdsSource
from data.sources.arxiv import ArxivSource
from data.sources.common_crawl import CommonCrawlSource
from data.sources.crawl_config import CrawlConfig
from data.sources.crawl_links import MAX_LINKS, links_of, robots_sitemaps, sitemap_links
from data.sources.crawl_urls import Scope, is_calendar
from data.sources.extract import ExtractConfig, Extracted, Page
from data.sources.git_repository import GitSource
from data.sources.hf_datasets import HfDatasetSource
from data.sources.html_files import HtmlFolder
from data.sources.jats import JatsSource
from data.sources.jsonl import JsonlSource
from data.sources.limits import FetchError
from tests.data.sources.test_code_sources import git
from tests.data.sources.test_disk_sources import ROWS, prepare_tfds
from tests.data.sources.test_fuzz_sources import (
    LIMITS,
    check,
    confuse_json,
    lines_of,
    mutate,
    ndjson,
    of,
    read_all,
    wound,
)
from tests.data.sources.test_web_archives import HTML, response

MANY = int(os.environ.get("SLUICE_FUZZ_CASES", "400"))
SIZES = pytest.mark.parametrize("cases", [24, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.long])])
TEXT = ndjson(ROWS[:200])
PAPERS = ("1706.00001.gz", "1706.00002.gz", "1706.00003.pdf")
PAPER = b"\\documentclass{a}\\title{T}\\begin{document}\\section{S} Text of the paper.\\end{document}"


def parts(compress: Callable[[bytes], bytes]) -> bytes:
    """The rows as four members, frames or streams."""
    rows = TEXT.splitlines(keepends=True)
    return b"".join(compress(b"".join(rows[at : at + 50])) for at in range(0, 200, 50))


def unzstd(data: bytes) -> bytes:
    text = b""
    while data:
        frame = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
        text += frame.decompress(data)
        if not frame.eof:
            raise EOFError
        data = frame.unused_data
    return text


def unbz2(data: bytes) -> bytes:
    """bz2.decompress takes what follows the first stream and is none for padding, which would hide a lost stream."""
    text = b""
    while data:
        stream = bz2.BZ2Decompressor()
        text += stream.decompress(data)
        if not stream.eof:
            raise EOFError
        data = stream.unused_data
    return text


COMPRESSED: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes], bytes]] = {
    "gz": (gzip.compress, gzip.decompress, b"\x1f\x8b"),
    "zst": (zstandard.compress, unzstd, b"\x28\xb5\x2f\xfd"),
    "bz2": (bz2.compress, unbz2, b"BZh"),
}


@SIZES
@pytest.mark.parametrize("kind", COMPRESSED)
def test_compressed_lines(kind: str, cases: int, tmp_path: Path) -> None:
    """A file that decodes gives all of its lines; one that does not, what stands before the fault and one drop."""
    compress, whole, magic = COMPRESSED[kind]
    path = tmp_path / f"x.jsonl.{kind}"

    def look(case: int, wounded: bytes) -> None:
        kept, dropped, ids = read_all(of(JsonlSource)(str(path)))
        if not wounded.startswith(magic):
            return
        try:
            seen = lines_of(whole(wounded))
        except (OSError, EOFError, zlib.error, zstandard.ZstdError):
            assert f"f:{path.name}:end" in ids, f"case {case}: the fault is not counted"
        else:
            assert kept + dropped == seen, f"case {case}: {kept} kept and {dropped} dropped of {seen}"

    wound(parts(compress), path, cases, 11, look)


def tar(members: list[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def wanted_members(data: bytes, suffixes: tuple[str, ...]) -> int | None:
    """Members that are read, the one in which the archive breaks with them; None where it is no tar."""
    if data[257:262] != b"ustar":
        return None
    count = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r|") as archive:
            for member in archive:
                if member.size > len(data) or member.issparse():  # the reader ends at a sparse member
                    return None
                wanted = member.name.lower().endswith(suffixes)
                count += wanted and (member.isfile() or member.issym() or member.islnk())
                if wanted and member.isfile():
                    opened = archive.extractfile(member)
                    count -= opened is None
                    _ = opened.read() if opened else b""
    except (tarfile.TarError, EOFError):
        return None  # in the middle of a member or between two: the fault is one drop, and is asserted by the caller
    return count


@SIZES
@pytest.mark.real_data
def test_tars_of_articles(cases: int, real_data: Path, tmp_path: Path) -> None:
    articles = sorted((real_data / "jats").glob("*.nxml"))
    members = [(f"é{'x' * 120}/{path.name}", path.read_bytes()[:20_000]) for path in articles]
    path = tmp_path / "x.tar"

    def look(case: int, wounded: bytes) -> None:
        kept, dropped, _ = read_all(of(JatsSource)(str(path)))
        seen = wanted_members(wounded, (".xml", ".nxml"))
        assert seen in (kept + dropped, None), f"case {case}: {kept} kept and {dropped} dropped of {seen}"

    wound(tar([*members, *members[:1], ("licence.txt", b"x")]), path, cases, 12, look, confuse_tar)


@SIZES
@pytest.mark.real_data
def test_tars_of_papers(cases: int, real_data: Path, tmp_path: Path) -> None:
    paper = (real_data / "arxiv" / "emcee-ms.tex").read_bytes()[:20_000]
    inner = gzip.compress(tar([("ms.tex", b"\\input{a}" + PAPER), ("a.tex", paper), ("../up.tex", PAPER)]))
    members = [("17/1706.00001.gz", inner), ("17/1706.00002.gz", gzip.compress(paper)), ("17/1706.00003.pdf", b"%PDF")]
    path = tmp_path / "arXiv_src_1706_001.tar"

    def look(case: int, wounded: bytes) -> None:
        kept, dropped, _ = read_all(of(ArxivSource)(str(path)))
        seen = wanted_members(wounded, tuple(f"/{name}" for name in PAPERS))
        least = 1 if seen is None else seen  # what is dropped inside of a paper counts besides
        assert kept + dropped >= (least if wounded.strip(b"\0") else 0), f"case {case}: {kept} and {dropped} of {least}"

    wound(tar([*members, *members[:2]]), path, cases, 13, look, confuse_tar)


def confuse_tar(data: bytes, rng: random.Random) -> bytes:
    """Headers with another name, type or size and the right checksum."""
    out = bytearray(data)
    heads = [at for at in range(0, len(out), 512) if out[at + 257 : at + 262] == b"ustar"]
    for at in rng.sample(heads, min(2, len(heads))):
        kind = rng.randrange(3)
        if kind == 0:
            out[at : at + 100] = rng.choice((b"../x.xml", b"\xff\xfe.nxml", b"1706.00001.gz", b"")).ljust(100, b"\0")
        elif kind == 1:
            out[at + 156] = rng.choice(b"0125LKxgSXA7\xff")
        else:
            out[at + 124 : at + 136] = (
                rng.choice((b"0" * 11, b"7" * 11, b"00000001000", b"\xff" * 11, b"z" * 11)) + b"\0"
            )
        out[at + 148 : at + 156] = b" " * 8
        out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + 512])
    return bytes(out)


@SIZES
def test_prepared_datasets(cases: int, tmp_path: Path) -> None:
    folder = Path(prepare_tfds(tmp_path, [f"Document {i}." for i in range(60)]))
    path = next(folder.glob("*.array_record*"))

    def look(case: int, wounded: bytes) -> None:
        kept, dropped = check(TfdsSource(name="f", path=str(folder)))
        assert kept + dropped == 60, f"case {case}: {kept} kept and {dropped} dropped of 60"

    wound(path.read_bytes(), path, min(cases, 200), 14, look)


@SIZES
def test_hugging_face_files(cases: int, tmp_path: Path) -> None:
    if not hasattr(pytest.importorskip("datasets"), "load_dataset"):
        pytest.skip("the package datasets, which is optional")
    (tmp_path / "0.jsonl").write_bytes(TEXT)

    def look(case: int, wounded: bytes) -> None:
        source = HfDatasetSource(name="f", path=str(tmp_path))
        kept, dropped = check(source)
        assert kept + dropped >= lines_of(TEXT) + 1, f"case {case}: {kept} kept and {dropped} dropped"

    wound(TEXT, tmp_path / "1.jsonl", min(cases, 100), 15, look, confuse_json)


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


def a_repository(folder: Path) -> tuple[Path, list[Path]]:
    """A small repository of our own sources, and the files of its store: loose objects, references, a pack."""
    root = folder / "project"
    git(folder, "init", "-q", "-b", "main", str(root))
    names = ["LICENSE", *(f"data/sources/{name}.py" for name in ("base", "jsonl", "limits", "wat", "epub"))]
    for number, name in enumerate(names):
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((Path(__file__).parents[3] / name).read_bytes())
        git(root, "add", "-A")
        git(root, "commit", "-q", "-m", str(number))
        if number == 2:
            git(root, "gc", "-q")
    store = root / ".git"
    return root, [path for path in sorted(store.rglob("*")) if path.is_file() and _matters(path.relative_to(store))]


def _matters(path: Path) -> bool:
    return path.parts[0] in ("objects", "refs", "HEAD", "packed-refs") and path.suffix not in (".rev", ".graph")


@SIZES
@pytest.mark.timeout(600)
def test_wounded_repositories(cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository whose commit does not resolve is refused with a line; of any other every entry counts once."""
    monkeypatch.setattr("data.sources.git_objects.BLOB_SECONDS", 2.0)
    root, stored = a_repository(tmp_path)
    rng, source = random.Random(19), GitSource(name="f", repositories=(str(root),))
    for case in range(cases):
        path = rng.choice(stored)
        path.chmod(0o644)
        data = path.read_bytes()
        loose = path.parent.parent.name == "objects" and len(path.parent.name) == 2
        path.write_bytes(zlib.compress(mutate(zlib.decompress(data), rng)) if loose and case % 2 else mutate(data, rng))
        listed = subprocess.run(["git", "-C", str(root), "ls-tree", "-rz", "HEAD"], capture_output=True, check=False)
        start = time.monotonic()
        try:
            kept, dropped = check(source)
        except ValueError as error:
            assert "rev-parse" in str(error) and "\n" not in str(error)
        else:
            seen = 1 if listed.returncode else listed.stdout.count(b"\0")
            assert kept + dropped == seen, f"case {case}, {path}: {kept} kept and {dropped} dropped of {seen}"
        assert time.monotonic() - start < 20, f"case {case} took too long"
        path.write_bytes(data)


def test_a_broken_blob_costs_that_file_only(tmp_path: Path) -> None:
    root, _ = a_repository(tmp_path)
    for name in ("LICENSE", "data/sources/epub.py"):
        sha = git(root, "rev-parse", f"HEAD:{name}").strip()
        path = root / ".git" / "objects" / sha[:2] / sha[2:]
        path.parent.mkdir(exist_ok=True)
        if path.exists():
            path.chmod(0o644)
        path.write_bytes(b"broken")
    kept, dropped = check(GitSource(name="f", repositories=(str(root),), leave_out=()))
    assert kept + dropped == 6 and kept >= 4


def test_trees_that_stand_for_billions_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty trees, each of which holds the one before twice, and no file: a walk without an end and without a word."""
    monkeypatch.setattr(git_objects, "TREE_SECONDS", 1.0)
    git(tmp_path, "init", "-q", str(tmp_path))

    def write(kind: str, data: bytes) -> str:
        command = ["git", "-C", str(tmp_path), "hash-object", "-w", "-t", kind, "--literally", "--stdin"]
        return subprocess.run(command, input=data, capture_output=True, check=True).stdout.decode().strip()

    tree = write("tree", b"")
    for _ in range(60):
        tree = write("tree", b"".join(b"40000 %s\0" % name + bytes.fromhex(tree) for name in (b"a", b"b")))
    commit = write("commit", f"tree {tree}\nauthor a <a> 0 +0000\ncommitter a <a> 0 +0000\n\nx\n".encode())
    start = time.monotonic()
    assert check(GitSource(name="f", repositories=(str(tmp_path),), commit=commit)) == (0, 1)
    assert time.monotonic() - start < 10
