"""Every reader on thousands of mutated real files: no crash, no hang, and the books balance."""

from __future__ import annotations

import gzip
import json
import os
import random
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.document import Document, Dropped
from data.sources.array_records import ArrayRecordSource
from data.sources.arxiv import ArxivSource
from data.sources.csv_files import CsvSource
from data.sources.epub import EpubSource
from data.sources.extract import Extracted, Page
from data.sources.forums import DiscourseSource, MboxSource
from data.sources.gutenberg import GutenbergSource
from data.sources.jats import JatsSource
from data.sources.jsonl import JsonlSource
from data.sources.limits import ReadLimits
from data.sources.mediawiki import MediaWikiSource
from data.sources.notebooks import NotebookFolder
from data.sources.oai import OaiSource
from data.sources.parquet import ParquetSource
from data.sources.pubmed import PubmedSource
from data.sources.reddit import RedditSource
from data.sources.stack_exchange import StackExchangeSource
from data.sources.text_files import TextFolder
from data.sources.twitter import TwitterSource
from data.sources.url_block import UrlMatcher
from data.sources.warc import WarcSource
from tests.data.sources import test_book_and_dialogue_sources as samples
from tests.data.sources.test_disk_sources import ROWS, WIKI

SECONDS = 5.0  # for one mutated file, on a busy machine
LIMITS = ReadLimits(max_record_bytes=4 << 20, expansion_grace=8 << 20)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four random wounds: flips, cuts, doubled and swapped pieces, numbers made huge, hostile bytes put in."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not out:
            return bytes(out)
        at, size = rng.randrange(len(out)), rng.choice((1, 4, 64, 1024))
        kind = rng.randrange(7)
        if kind == 0:
            for index in range(at, min(at + size, len(out))):
                out[index] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at : at + size]
        elif kind == 2:
            out = out[:at] if rng.random() < 0.3 else out[at:] if rng.random() < 0.1 else out
        elif kind == 3:
            out[at:at] = out[max(at - size, 0) : at] * rng.randint(1, 20)
        elif kind == 4:
            out[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"9999", b"-1\n\n", b"<![CDATA[", b"{{[["))
        elif kind == 5:
            other = rng.randrange(len(out))
            out[at : at + size], out[other : other + size] = out[other : other + size], out[at : at + size]
        else:
            out[at:at] = rng.choice(
                (b"<row ", b"\r\n\r\nWARC/1.0\r\n", b'"', b"\\begin{", b"<!ENTITY x SYSTEM 'file:///etc/passwd'>")
            )
    return bytes(out)


def array_records(folder: Path) -> bytes:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(folder / "seed"), "group_size:1")
    for row in ROWS[:50]:
        writer.write(json.dumps(row).encode())
    writer.close()
    return (folder / "seed").read_bytes()


def parquet(folder: Path) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS[:200]), folder / "seed", row_group_size=50)
    return (folder / "seed").read_bytes()


def epub(folder: Path) -> bytes:
    samples.epub(folder / "seed")
    return (folder / "seed").read_bytes()


def ndjson(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


class PlainWarc(WarcSource):
    """The WARC reader with extraction in this process: what is tested is the reading."""

    def documents(self, shard: Any) -> Any:
        with Path(shard["url"]).open("rb") as raw:
            for (offset, meta), page in self.pages(raw, UrlMatcher(set(), set())):
                if isinstance(page, Page):
                    yield self.document(shard, offset, page.body.decode("latin-1"), **meta)
                elif isinstance(page, Extracted):
                    values = {**meta, **page.meta}
                    value = values.pop("value", None)
                    yield self.drop(shard, offset, page.reason or "text", value=value, **values)


def of(kind: Any) -> Callable[[str], Any]:
    """A source of one file."""
    return lambda path: kind(name="f", paths=(path,), limits=LIMITS)


REAL: dict[str, tuple[str, str, Callable[[str], Any]]] = {  # reader -> real file, name for it, source
    "warc": ("warc/sample-creativecommons.warc.gz", "x.warc.gz", of(PlainWarc)),
    "wet": ("warc/whirlwind.warc.wet.gz", "x.warc.wet.gz", of(PlainWarc)),
    "stack_exchange": ("stackexchange/coffee-Posts.xml", "Posts.xml", of(StackExchangeSource)),
    "jats": ("jats/pone.0000217.nxml", "x.nxml", of(JatsSource)),
    "pubmed": ("jats/pubmed-29768149.xml", "x.xml", of(PubmedSource)),
    "oai": ("arxiv/arxiv-physics-hep-ex.xml", "x.xml", of(OaiSource)),
    "arxiv": ("arxiv/emcee-ms.tex", "x.tex", of(ArxivSource)),
    "gutenberg": ("gutenberg/11.txt", "x.txt", of(GutenbergSource)),
    "text": ("text/wikitext2-valid.txt", "x.txt", of(TextFolder)),
}  # fmt: skip
MADE: dict[str, tuple[Callable[[Path], bytes], str, Callable[[str], Any]]] = {
    "jsonl": (lambda f: ndjson(ROWS[:100]), "x.jsonl", of(JsonlSource)),
    "jsonl_gz": (lambda f: gzip.compress(ndjson(ROWS[:100])), "x.jsonl.gz", of(JsonlSource)),
    "csv": (lambda f: b"text,n\n" + b'"a ""b""\nc",1\n' * 100, "x.csv", of(CsvSource)),
    "parquet": (parquet, "x.parquet", of(ParquetSource)),
    "mediawiki": (lambda f: WIKI.encode(), "x.xml", of(MediaWikiSource)),
    "epub": (epub, "x.epub", of(EpubSource)),
    "reddit": (lambda f: ndjson(samples.REDDIT + samples.COMMENTS), "RS_2023-01", of(RedditSource)),
    "twitter": (lambda f: ndjson([{"id": i, "text": "x", "in_reply_to_status_id_str": i // 2} for i in range(1, 40)]),
                "x.json", of(TwitterSource)),
    "mbox": (lambda f: samples.MBOX * 5, "x.mbox", of(MboxSource)),
    "discourse": (lambda f: json.dumps({"post_stream": {"posts": [{"cooked": "<p>x</p>"}] * 9}}).encode(), "x.json",
                  of(DiscourseSource)),
    "notebook": (lambda f: json.dumps({"cells": [{"cell_type": "code", "source": ["a", "b"]}] * 9}).encode(), "x.ipynb",
                 of(NotebookFolder)),
}  # fmt: skip


def check(source: Any) -> tuple[int, int]:
    """(documents, drops) of one mutated file; every item is sound and can be written."""
    documents = drops = 0
    for shard in source.shards():
        for item in source.documents(shard):
            assert isinstance(item, Document | Dropped)
            document = item if isinstance(item, Document) else item.document
            document.text.encode()
            document.id.encode()
            json.dumps(document.meta, allow_nan=False).encode()
            documents += isinstance(item, Document)
            drops += isinstance(item, Dropped)
    return documents, drops


def fuzz(data: bytes, name: str, make: Callable[[str], Any], folder: Path, cases: int, seed: int) -> None:
    rng, path = random.Random(seed), folder / name
    path.write_bytes(data)
    assert sum(check(make(str(path)))) > 0, "the file is read before it is wounded"
    for case in range(cases):
        wounded = mutate(data, rng)
        path.write_bytes(wounded)
        start = time.monotonic()
        documents, drops = check(make(str(path)))
        assert time.monotonic() - start < SECONDS, f"case {case} took {time.monotonic() - start:.1f} s"
        if wounded.strip() and name.endswith((".tex", ".nxml", ".txt", ".ipynb", ".epub")):
            assert documents + drops > 0, f"case {case} left no trace"


@pytest.mark.real_data
@pytest.mark.parametrize("reader", REAL)
def test_mutated_real_files(reader: str, real_data: Path, tmp_path: Path) -> None:
    path, name, make = REAL[reader]
    data = (real_data / path).read_bytes()
    fuzz(data[:300_000] if reader == "text" else data, name, make, tmp_path, 12, 1)


@pytest.mark.parametrize("reader", MADE)
def test_mutated_made_files(reader: str, tmp_path: Path) -> None:
    build, name, make = MADE[reader]
    fuzz(build(tmp_path), name, make, tmp_path, 40, 2)


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("reader", [*REAL, *MADE])
def test_thousands_of_mutations(reader: str, real_data: Path, tmp_path: Path) -> None:
    """SLUICE_FUZZ_CASES sets the number for each reader."""
    cases = int(os.environ.get("SLUICE_FUZZ_CASES", "120"))
    if reader in REAL:
        path, name, make = REAL[reader]
        data = (real_data / path).read_bytes()
        fuzz(data[:200_000], name, make, tmp_path, cases, 3)
    else:
        build, name, make = MADE[reader]
        fuzz(build(tmp_path), name, make, tmp_path, cases, 4)


def test_mutated_array_records(tmp_path: Path) -> None:
    """The reader below is C++, with checksums of its own: what does not match is a counted drop."""
    data, rng = array_records(tmp_path), random.Random(5)
    path = tmp_path / "x.array_record"
    for _ in range(100):
        path.write_bytes(mutate(data, rng))
        check(ArrayRecordSource(name="f", paths=(str(path),)))


@pytest.mark.parametrize("seed", range(20))
def test_json_lines_books_balance(seed: int, tmp_path: Path) -> None:
    """kept + dropped is the number of lines that are not blank, whatever was done to them."""
    wounded = mutate(ndjson(ROWS), random.Random(seed))
    (tmp_path / "x.jsonl").write_bytes(wounded)
    lines = sum(bool(line.strip()) for line in wounded.split(b"\n"))
    assert sum(check(JsonlSource(name="f", paths=(str(tmp_path),)))) == lines


def test_stack_exchange_books_balance(tmp_path: Path) -> None:
    rows = [f'<row Id="{i}" PostTypeId="{1 + i % 2}" ParentId="{i - 1}" Title="t" Body="b" />' for i in range(1, 200)]
    data = ("<posts>\n" + "\n".join(rows) + "\n</posts>\n").encode()
    for seed in range(30):
        wounded = mutate(data, random.Random(seed))
        (tmp_path / "Posts.xml").write_bytes(wounded)
        seen = [line for line in wounded.split(b"\n") if line.strip() and line.strip() not in (b"<posts>", b"</posts>")]
        source = StackExchangeSource(name="f", paths=(str(tmp_path),))
        kept = dropped = 0
        for shard in source.shards():
            for item in source.documents(shard):
                if isinstance(item, Document):
                    kept += item.meta["records"]
                else:
                    dropped += item.document.meta.get("records", 1)
        assert kept + dropped == len(seen), f"seed {seed}"


def test_zip_members_never_leave_their_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.epub", "w") as book:
        book.writestr("../../outside", "x")
        book.writestr("META-INF/container.xml", '<c><rootfile full-path="../../../etc/passwd"/></c>')
    documents, drops = check(EpubSource(name="f", paths=(str(tmp_path),)))
    assert documents == 0 and drops == 1 and not (tmp_path.parent.parent / "outside").exists()
