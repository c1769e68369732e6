"""Records of two gigabytes and pages of fifty megabytes: counted, neighbours read, memory and time bounded."""

from __future__ import annotations

import gzip
import io
import json
import resource
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from data.document import Dropped
from data.sources.arxiv import ArxivSource
from data.sources.csv_files import CsvSource
from data.sources.extract import ExtractConfig
from data.sources.forums import MboxSource
from data.sources.html_files import HtmlFolder
from data.sources.jsonl import JsonlSource
from data.sources.pubmed import PubmedSource
from data.sources.reddit import RedditSource
from data.sources.text_files import TextFolder
from data.sources.warc import WarcSource
from tests.data.sources.helpers import read, reasons

HOLES = {"jsonl": 2 << 30}  # bytes of a record, a hole in a sparse file: it takes no room on the disk
HOLE = 520 << 20  # in the other formats: more than the memory that is allowed
PAPER = b"\\documentclass{a}\\begin{document} Text of the paper. \\end{document}"
ARTICLE = b"<PubmedArticle><MedlineCitation><Article><Abstract><AbstractText>%s</AbstractText></Abstract></Article>"
ARTICLE += b"</MedlineCitation></PubmedArticle>"
MAIL = b"From a@b.example Mon Jan  1 10:00:00 2024\nFrom: a\nSubject: s\n\n%s\n\n"
HTTP = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"
WARC = "WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http\r\nContent-Length: {}\r\n\r\n"


def warc(size: int) -> bytes:
    return WARC.format(len(HTTP) + size).encode() + HTTP


def tar(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf()


SMALL_WARC = warc(5) + b"small\r\n\r\n"
SMALL_REDDIT = b'"}\n{"id": "b", "title": "x", "selftext": "small", "author": "a"}\n'
# reader -> (source, file name, before the hole, behind it); the hole is one record, what is around it another or two.
# The others read with the same code: lines (Stack Exchange, Twitter) as JSON Lines, XML (OAI, MediaWiki) as PubMed,
# files that are one record (Gutenberg, notebooks, Discourse) as text, tars (JATS) as arXiv.
CASES = {
    "jsonl": (JsonlSource, "x.jsonl", b'{"text": "small"}\n{"text": "', b'"}\n{"text": "small"}\n'),
    "reddit": (RedditSource, "RS_2023", b'{"id": "a", "title": "x", "selftext": "', SMALL_REDDIT),
    "csv": (CsvSource, "x.csv", b"text\nsmall\n", b"\nsmall\n"),
    "pubmed": (PubmedSource, "x.xml", *(ARTICLE % b"small" + ARTICLE).split(b"%s"), ARTICLE % b"small"),
    "mbox": (MboxSource, "x.mbox", *(MAIL % b"small" + MAIL).split(b"%s"), MAIL % b"small"),
    "warc": (WarcSource, "x.warc", SMALL_WARC + warc(HOLE), b"\r\n\r\n" + SMALL_WARC),
    "arxiv": (ArxivSource, "x.tar", tar("a.tex", HOLE), tar("b.tex", len(PAPER)) + PAPER + bytes(2048)),
    "text": (TextFolder, "x.txt", b"x", b"x"),
    "html": (HtmlFolder, "x.html", b"<p>", b"</p>"),
}  # fmt: skip


def write_hole(path: Path, size: int, parts: tuple[bytes, ...]) -> None:
    before, *behind = parts
    with path.open("wb") as out:
        out.write(before)
        out.seek(size, io.SEEK_CUR)
        out.write(b"".join(behind))


def read_hole(reader: str, path: str) -> None:
    """Run in a process of its own: what came out of one file, and the most memory that it took."""
    source = CASES[reader][0](name="h", paths=(path,))
    if isinstance(source, WarcSource):
        source = WarcSource(name="h", paths=(path,), extract=ExtractConfig(chain=("plain",)))
    found = [item for shard in source.shards() for item in source.documents(shard)]
    peak = next(line for line in Path("/proc/self/status").read_text().split("\n") if line.startswith("VmHWM"))
    dropped = [item.drop.reason for item in found if isinstance(item, Dropped)]
    seconds = resource.getrusage(resource.RUSAGE_SELF).ru_utime  # ours: what the system takes to read a hole varies
    megabytes = int(peak.split()[1]) / 1024
    print(json.dumps({"kept": len(found) - len(dropped), "dropped": dropped, "mb": megabytes, "seconds": seconds}))


@pytest.mark.slow
@pytest.mark.parametrize("reader", CASES)
def test_a_record_that_memory_cannot_hold(reader: str, tmp_path: Path) -> None:
    name, *parts = CASES[reader][1:]
    path = tmp_path / name
    write_hole(path, HOLES.get(reader, HOLE), tuple(parts))
    code = f"from tests.data.sources.test_hostile_sizes import read_hole; read_hole({reader!r}, {str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["mb"] < 500 and found["seconds"] < 10, found
    assert set(found["dropped"]) <= {"record_too_large", "page_too_large", "bad_xml"} and found["dropped"], found
    assert found["kept"] >= (reader not in ("text", "html")), found


def test_a_page_of_fifty_megabytes_is_counted(tmp_path: Path) -> None:
    """With the limits as they are by default: in a WARC file, in a folder, compressed on the way."""
    page = b"<html><body>" + b"<p>word</p>" * (50 << 20 >> 3)
    small = b"<html><body><p>A page of a few words, and then some more.</p></body></html>"
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n%s\r\n"
    records = b""
    for body, header in ((page, b""), (gzip.compress(page, 1), b"Content-Encoding: gzip\r\n"), (small, b"")):
        block = http % header + body
        records += gzip.compress(WARC.format(len(block)).encode() + block + b"\r\n\r\n", 1)
    (tmp_path / "x.warc.gz").write_bytes(records)
    (tmp_path / "large.html").write_bytes(page)
    fast = ExtractConfig(chain=("plain",))
    documents, drops = read(WarcSource(name="w", paths=(str(tmp_path / "x.warc.gz"),), extract=fast))
    assert len(documents) == 1 and reasons(drops) == {"record_too_large": 1, "page_too_large": 1}
    assert reasons(read(HtmlFolder(name="h", paths=(str(tmp_path / "large.html"),)))[1]) == {"page_too_large": 1}


def test_a_bomb_in_an_archive_is_left_and_not_unpacked(tmp_path: Path) -> None:
    """A gzip member of 1 MB that holds 1 GB takes no longer than a small one: reading goes on at the next member."""
    start = WARC.format(1 << 30).encode() + HTTP
    packer = gzip.zlib.compressobj(9, wbits=31)
    bomb = packer.compress(start) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
    block = HTTP + b"A page of a few words."
    good = gzip.compress(WARC.format(len(block)).encode() + block + b"\r\n\r\n")
    (tmp_path / "x.warc.gz").write_bytes(good + (bomb + good) * 3)
    begin = time.process_time()
    documents, drops = read(WarcSource(name="w", paths=(str(tmp_path),)))
    assert len(documents) == 4 and reasons(drops) == {"record_too_large": 3}
    assert time.process_time() - begin < 2.0
