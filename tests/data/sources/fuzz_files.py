"""Files that are wounded, real ones and made ones, with the reader of each."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastwarc.warc import WarcRecord, WarcRecordType

from data.sources.arxiv import ArxivSource
from data.sources.csv_files import CsvSource
from data.sources.epub import EpubSource
from data.sources.extract import Extracted, Page
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

LIMITS = ReadLimits(max_record_bytes=4 << 20, expansion_grace=8 << 20)


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
