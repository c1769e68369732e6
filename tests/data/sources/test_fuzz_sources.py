"""Every reader on thousands of mutated real files: no crash, no hang, and the books balance.

Wounds are of two kinds: of the bytes, and of the structure (a number where a list was, an element moved), which a
parser accepts and which so reach the code behind it.
"""

from __future__ import annotations

import copy
import csv
import gzip
import io
import json
import os
import random
import re
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastwarc.warc import WarcRecord, WarcRecordType
from lxml import etree

from data.document import Document, Dropped
from data.sources.array_records import ArrayRecordSource
from data.sources.arxiv import ArxivSource
from data.sources.csv_files import CsvSource
from data.sources.epub import EpubSource
from data.sources.extract import Extracted, Page
from data.sources.files import BUFFER
from data.sources.forum_pages import ForumPageSource
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


STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    1e308,
    float("inf"),
    10**30,
    "",
    "9" * 400,
    "\ud800",
    [],
    {},
    [[]],
    {"a": {}},
    [None, 7, "x"],
)


def confuse(value: Any, rng: random.Random) -> Any:
    """A JSON value with one node, chosen at random, of another type."""
    if not value or not isinstance(value, dict | list) or rng.random() < 0.15:
        return rng.choice(STRANGE)
    if isinstance(value, dict):
        name = rng.choice(list(value))
        return {**value, name: confuse(value[name], rng)}
    place = rng.randrange(len(value))
    return [*value[:place], confuse(value[place], rng), *value[place + 1 :]]


def confuse_json(data: bytes, rng: random.Random) -> bytes:
    """One object, or one to four of its lines, with a node of another type; well-formed JSON all the same."""
    lines = data.splitlines(keepends=True)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(confuse(json.loads(lines[at]), rng)).encode() + b"\n"
    return b"".join(lines)


def confuse_xml(data: bytes, rng: random.Random) -> bytes:
    """Elements lost, doubled, emptied, renamed or moved into others, attributes strange; well-formed all the same."""
    root = etree.fromstring(data, etree.XMLParser(resolve_entities=False, load_dtd=False, huge_tree=True))
    for _ in range(rng.randint(1, 8)):
        elements = [element for element in root.iter() if isinstance(element.tag, str)][1:]
        if not elements:
            break
        element, other = rng.choice(elements), rng.choice(elements)
        parent, kind = element.getparent(), rng.randrange(6)
        if kind == 0 and parent is not None:
            parent.remove(element)
        elif kind == 1 and parent is not None:
            parent.append(copy.deepcopy(element))
        elif kind == 2:
            element.clear()
        elif kind == 3:
            element.tag = rng.choice((other.tag, "x", "p", "sec", "table", "text"))
        elif kind == 4 and element not in other.iterancestors() and element is not other:
            other.insert(0, element)
        else:
            for name in list(element.attrib) or ["id"]:
                element.set(name, rng.choice(("", "-1", "9" * 40, "../../x", "1")))
    return etree.tostring(root)


def confuse_rows(data: bytes, rng: random.Random) -> bytes:
    """Attributes of Stack Exchange rows lost and made strange."""
    lines = data.split(b"\n")
    for _ in range(rng.randint(1, 40)):
        at = rng.randrange(len(lines))
        found = list(re.finditer(rb' (\w+)="([^"]*)"', lines[at]))
        if found:
            hit = rng.choice(found)
            new = rng.choice((b"", b' %s=""' % hit[1], b' %s="-7"' % hit[1], b' %s="x"' % hit[1], b' Id="1"'))
            lines[at] = lines[at][: hit.start()] + new + lines[at][hit.end() :]
    return b"\n".join(lines)


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
ENTITIES = {"urls": [{"url": "https://t.co/x", "expanded_url": "https://a.example/"}]}
TWEETS = {
    "data": [{"id": str(i), "text": "x https://t.co/x", "author_id": "7", "conversation_id": "1", "lang": "en",
              "entities": ENTITIES, "public_metrics": {"like_count": 3}, "created_at": "2024-01-01",
              "referenced_tweets": [{"type": "replied_to", "id": str(i - 1)}]} for i in range(1, 6)],
    "includes": {"users": [{"id": "7", "username": "ann"}], "tweets": [{"id": "0", "text": "first"}]},
}  # fmt: skip
USER = {"screen_name": "ann", "id_str": "7"}
RETWEET = {"id_str": "90", "text": "RT", "user": USER,
           "retweeted_status": {"id_str": "91", "full_text": "y", "user": USER, "entities": ENTITIES}}  # fmt: skip
NOTE = {"id_str": "92", "text": "a", "note_tweet": {"text": "long"}, "extended_tweet": {"full_text": "b"},
        "in_reply_to_status_id_str": "91", "favorite_count": 4, "user": USER}  # fmt: skip
POST = {"id": 1, "username": "ann", "cooked": "<p>x</p>", "like_count": 2, "post_type": 1, "hidden": False}
TOPIC = {
    "id": 5,
    "title": "T",
    "tags": ["a", {"name": "b"}],
    "created_at": "2024",
    "post_stream": {"posts": [POST] * 5},
}
CELL = {"cell_type": "code", "source": ["a", "b"], "level": 2}
NOTEBOOK = {"metadata": {"language_info": {"name": "julia"}, "kernelspec": {"language": "R"}}, "cells": [CELL] * 4}
OLD_NOTEBOOK = {"worksheets": [{"cells": [{"cell_type": "heading", "level": 2, "input": "T"}, CELL]}]}
PAGE = {"Head": {"Title": "T", "Metas": [{"name": "description", "content": "c"}]}, "Links": [{"url": "/a"}]}


def wat(folder: Path, page: Any = PAGE) -> bytes:
    """Two WAT records, each its own gzip member."""
    record = WarcRecord()
    record.init_headers(WarcRecordType.metadata)
    record.headers["WARC-Target-URI"], record.headers["Content-Type"] = "https://a.example/", "application/json"
    metadata = {"HTTP-Response-Metadata": {"HTML-Metadata": page}}
    record.set_bytes_content(json.dumps({"Envelope": {"Payload-Metadata": metadata}}).encode())
    stream = io.BytesIO()
    record.write(stream)
    return gzip.compress(stream.getvalue()) * 2


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
    "twitter_pages": (lambda f: ndjson([TWEETS, RETWEET, NOTE] * 5), "x.json", of(TwitterSource)),
    "discourse": (lambda f: json.dumps(TOPIC).encode(), "x.json", of(DiscourseSource)),
    "forum_pages": (lambda f: samples.PHPBB.format(samples.PHPBB_POST * 4).encode(), "x.html", of(ForumPageSource)),
    "notebook": (lambda f: json.dumps(NOTEBOOK).encode(), "x.ipynb", of(NotebookFolder)),
    "notebook_3": (lambda f: json.dumps(OLD_NOTEBOOK).encode(), "x.ipynb", of(NotebookFolder)),
    "wat": (wat, "x.warc.wat.gz", of(PlainWarc)),
}  # fmt: skip


# How many records a file holds, counted without the reader; None where the wounds leave no one answer.


def blocks(tag: str) -> Callable[[bytes], int]:
    """Elements of a name, the last of which may never end."""
    pattern = re.compile(rf"<{tag}(?=[\s>/]).*?(?:</{tag}>|\Z)".encode(), re.S)
    return lambda data: sum(1 for _ in pattern.finditer(data))


def lines_of(data: bytes) -> int:
    return sum(bool(line.strip()) for line in data.split(b"\n"))


def posts_of(data: bytes) -> int:
    wrapper = re.compile(rb"(\xef\xbb\xbf)?<(\?xml|/?posts)")
    return sum(bool(line.strip()) and not wrapper.match(line.strip()) for line in data.split(b"\n"))


def as_json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def tweets_of(data: bytes) -> int:
    """Posts of API v1.1 and of v2 pages; a retweet counts with what it repeats, a line that is no object as one."""
    if data.lstrip()[:1] == b"[":
        values = as_json(data)
        return 1 if values is None else sum(map(posts_in, values))
    return sum(posts_in(as_json(line)) for line in data.split(b"\n") if line.strip())


def posts_in(value: Any) -> int:
    if not isinstance(value, dict):
        return 1
    main, more = value.get("data", value), value.get("includes")
    tweets = more.get("tweets") if isinstance(more, dict) else None
    posts = [*(main if isinstance(main, list) else [main]), *(tweets if isinstance(tweets, list) else [])]
    return sum(1 + isinstance(post.get("retweeted_status") if isinstance(post, dict) else None, dict) for post in posts)


def gzip_lines(data: bytes) -> int:
    """Whole lines in front of the fault, and one for the fault."""
    if data[:2] != b"\x1f\x8b":
        return lines_of(data)
    text, stream = b"", gzip.GzipFile(fileobj=io.BytesIO(data))
    try:
        while block := stream.read1(BUFFER):
            text += block
    except (OSError, EOFError, zlib.error):
        return lines_of(text.rpartition(b"\n")[0]) + 1
    return lines_of(text)


def messages_of(data: bytes) -> int:
    """mbox: a From line begins a message at the start and behind an empty line; what stands before the first is one."""
    count, blank = 0, True
    for line in data.splitlines(keepends=True) if b"\r" not in data else io.BytesIO(data):
        count += bool((re.match(rb"From \S.*\d\d:\d\d", line) and blank) or not count)
        blank = line in (b"\n", b"\r\n")
    return count


def csv_rows(data: bytes) -> int:
    """Rows behind the header; one where there is no usable header."""
    lines = (line.decode("utf-8", "replace") for line in io.BytesIO(data))
    rows, count = csv.reader(lines), 0
    try:
        header = next(rows, None) or []
    except csv.Error:
        return 1
    if "text" not in (name.removeprefix("\ufeff") for name in header):
        return 1
    while True:
        try:
            count += bool(next(rows))
        except csv.Error:
            count += 1
        except StopIteration:
            return count


def parquet_rows(data: bytes) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(io.BytesIO(data))
    except (pa.ArrowException, OSError):
        return 1
    return int(table.metadata.num_rows) if "text" in table.schema_arrow.names else 1


def topic_posts(data: bytes) -> int | None:
    try:
        posts = json.loads(data)["post_stream"]["posts"]
    except (ValueError, KeyError, TypeError):
        return 1
    return len(posts) or None if isinstance(posts, list) else 1


def one(data: bytes) -> int:
    return 1


RECORDS: dict[str, Callable[[bytes], int | None]] = {
    "stack_exchange": posts_of, "jats": one, "pubmed": blocks("PubmedArticle"), "oai": blocks("record"), "arxiv": one,
    "gutenberg": one, "text": one, "jsonl": lines_of, "csv": csv_rows, "parquet": parquet_rows, "reddit": lines_of,
    "mediawiki": blocks("page"), "twitter": tweets_of, "twitter_pages": tweets_of,
    "jsonl_gz": gzip_lines, "mbox": messages_of, "discourse": topic_posts, "notebook": one,
    "notebook_3": one,
}  # fmt: skip


def whole_members(data: bytes) -> set[int]:
    """WARC: offsets of the gzip members that are whole, say their right length, and are of a type that is read."""
    found = set()
    for hit in re.finditer(rb"\x1f\x8b\x08", data):
        try:
            member = zlib.decompressobj(31)
            text = member.decompress(data[hit.start() :], 8 << 20)
        except zlib.error:
            continue
        head, _, rest = text.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)\r\n", head + b"\r\n")
        kind = re.search(rb"\r\nWARC-Type: (response|conversion|revisit)\r\n", head + b"\r\n")
        if member.eof and text.startswith(b"WARC/1.") and length and kind and len(rest) == int(length[1]) + 4:
            found.add(hit.start())
    return found


# Readers that name a record by the identifier it brings, which a wounded file may hold twice.
OWN_IDS = (MediaWikiSource, StackExchangeSource, TwitterSource)


def check(source: Any) -> tuple[int, int]:
    """(documents, drops) of one mutated file, in records; every item is sound and can be written."""
    kept, dropped, _ = read_all(source)
    return kept, dropped


def read_all(source: Any) -> tuple[int, int, dict[str, Any]]:
    """(records kept, records dropped, {id: offset}) of a file; no id is given twice."""
    kept, dropped, offsets = 0, 0, dict[str, Any]()
    for shard in source.shards():
        for item in source.documents(shard):
            assert isinstance(item, Document | Dropped)
            document = item if isinstance(item, Document) else item.document
            document.text.encode()
            document.id.encode()
            json.dumps(document.meta, allow_nan=False).encode()
            own = isinstance(source, OWN_IDS)
            assert own or document.id not in offsets, f"{document.id} is given twice"
            offsets[document.id] = document.meta.get("offset")
            if isinstance(item, Document):
                kept += document.meta.get("records", 1)
            else:
                dropped += document.meta.get("records", 1)
    return kept, dropped, offsets


def fuzz(reader: str, data: bytes, folder: Path, cases: int, seed: int) -> None:
    """Half of the cases wound the bytes, half the structure where the format has one."""
    name, make = (REAL.get(reader) or MADE[reader])[1:]

    def look(case: int, wounded: bytes) -> None:
        kept, dropped, offsets = read_all(make(str(folder / name)))
        if reader in RECORDS and wounded.strip():
            seen = RECORDS[reader](wounded)
            assert seen in (kept + dropped, None), f"case {case}: {kept} kept and {dropped} dropped of {seen}"
        elif reader in WHOLE and wounded.strip():
            books = [found for found in offsets if found in (f"f:{name}", f"f:{name}:end")]
            assert len(books) == 1, f"case {case}: {books}, and its parts {list(offsets)}"
        elif reader in ("warc", "wet"):
            assert whole_members(wounded) <= set(offsets.values()), f"case {case} lost a whole record"
        elif wounded.strip() and reader != "wat":  # whose records may have become of a type that is not read
            assert kept + dropped > 0, f"case {case} left no trace"

    (folder / name).write_bytes(data)
    assert sum(check(make(str(folder / name)))) > 0, "the file is read before it is wounded"
    wound(data, folder / name, cases, seed, look, CONFUSE.get(reader))


def wound(
    data: bytes,
    path: Path,
    cases: int,
    seed: int,
    look: Callable[[int, bytes], None],
    confuse_it: Callable[[bytes, random.Random], bytes] | None = None,
) -> None:
    """`look` at each of the mutated files, within its time."""
    rng = random.Random(seed)
    for case in range(cases):
        wounded = confuse_it(data, rng) if confuse_it and case % 2 else mutate(data, rng)
        path.write_bytes(wounded)
        start = time.monotonic()
        look(case, wounded)
        assert time.monotonic() - start < SECONDS, f"case {case} took {time.monotonic() - start:.1f} s"


WHOLE = ("epub", "forum_pages")  # a record is the file; what is lost inside it is dropped besides, with its own id
JSON_READERS = ("jsonl", "reddit", "twitter", "twitter_pages", "discourse", "notebook", "notebook_3")
CONFUSE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    **dict.fromkeys(JSON_READERS, confuse_json),
    "wat": lambda data, rng: wat(Path(), confuse(PAGE, rng)),
    **dict.fromkeys(("jats", "pubmed", "oai"), confuse_xml),
    "stack_exchange": confuse_rows,
}


def seed_of(reader: str, folder: Path, real_data: Path | None) -> bytes:
    """The file that is wounded."""
    if reader in MADE:
        return MADE[reader][0](folder)
    assert real_data is not None
    data = (real_data / REAL[reader][0]).read_bytes()
    return data[:80_000].rpartition(b"\n")[0] if reader in ("text", "stack_exchange") else data


@pytest.mark.real_data
@pytest.mark.parametrize("reader", REAL)
def test_mutated_real_files(reader: str, real_data: Path, tmp_path: Path) -> None:
    fuzz(reader, seed_of(reader, tmp_path, real_data), tmp_path, 12, 1)


@pytest.mark.parametrize("reader", MADE)
def test_mutated_made_files(reader: str, tmp_path: Path) -> None:
    fuzz(reader, seed_of(reader, tmp_path, None), tmp_path, 40, 2)


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("reader", [*REAL, *MADE])
def test_thousands_of_mutations(reader: str, real_data: Path, tmp_path: Path) -> None:
    """SLUICE_FUZZ_CASES sets the number for each reader."""
    cases = int(os.environ.get("SLUICE_FUZZ_CASES", "200"))
    fuzz(reader, seed_of(reader, tmp_path, real_data), tmp_path, cases, 3)


def test_mutated_array_records(tmp_path: Path) -> None:
    """The reader below is C++, with checksums of its own: what does not match is a counted drop."""
    from array_record.python.array_record_module import ArrayRecordReader

    def look(case: int, wounded: bytes) -> None:
        try:
            seen = max(ArrayRecordReader(str(path)).num_records(), 1)
        except RuntimeError:
            seen = 1
        kept, dropped = check(ArrayRecordSource(name="f", paths=(str(path),)))
        assert kept + dropped == seen, f"case {case}: {kept} kept and {dropped} dropped of {seen}"

    path = tmp_path / "x.array_record"
    wound(array_records(tmp_path), path, 100, 5, look)


def test_zip_members_never_leave_their_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.epub", "w") as book:
        book.writestr("../../outside", "x")
        book.writestr("META-INF/container.xml", '<c><rootfile full-path="../../../etc/passwd"/></c>')
    documents, drops = check(EpubSource(name="f", paths=(str(tmp_path),)))
    assert documents == 0 and drops == 1 and not (tmp_path.parent.parent / "outside").exists()
