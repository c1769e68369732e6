"""Files of the real world repeat the ids of their own records: two documents never get one id, and no build stops."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.engine import LocalPool
from data.read import read_source
from data.sources.base import FileSource
from data.sources.csv_files import CsvSource
from data.sources.forums import DiscourseSource, MboxSource
from data.sources.jsonl import JsonlSource
from data.sources.mediawiki import MediaWikiSource
from data.sources.oai import OaiSource
from data.sources.parquet import ParquetSource
from data.sources.pubmed import PubmedSource
from data.sources.reddit import RedditSource
from data.sources.stack_exchange import StackExchangeSource
from data.sources.text_files import TextFolder
from data.sources.twitter import TwitterSource
from tests.data.sources.helpers import read, reasons

PAGE = "<page><title>A</title><ns>0</ns><id>7</id><revision><text>Some words.</text></revision></page>\n"
PUBMED = """<PubmedArticle><MedlineCitation><PMID>7</PMID><Article><ArticleTitle>T</ArticleTitle><Abstract>
<AbstractText>Words.</AbstractText></Abstract></Article></MedlineCitation></PubmedArticle>\n"""
OAI = """<record><header><identifier>oai:7</identifier></header><metadata><arXiv><id>7</id><title>T</title>
<abstract>Words.</abstract></arXiv></metadata></record>\n"""
QUESTION = '<row Id="7" PostTypeId="1" Title="T" Body="&lt;p&gt;Q&lt;/p&gt;" Score="1" />\n'
ANSWER = '<row Id="8" PostTypeId="2" ParentId="7" Body="&lt;p&gt;A&lt;/p&gt;" Score="1" />\n'
WIKI_ROW = '<row Id="9" PostTypeId="5" Body="x" />\n'
SUBMISSION = json.dumps({"id": "a", "title": "Why?", "selftext": "Tell me.", "author": "ann"}) + "\n"
TWEET = json.dumps({"id_str": "7", "full_text": "Words"}) + "\n"
TWEET_2 = json.dumps({"id": "7", "text": "Words", "conversation_id": "7"}) + "\n"
MESSAGE = "From a@b.example Mon Jan  1 10:00:00 2024\nFrom: A <a@b.example>\nMessage-ID: <7@b>\n\nWords.\n\n"
POST = {"id": 7, "username": "ann", "cooked": "<p>Words.</p>"}
TOPIC = json.dumps({"id": 1, "title": "T", "post_stream": {"posts": [POST, POST]}})
CSV = 'id,text\n7,Words.\n7,Others.\n,"Without."\n3,Three.\n'
JSONL = '{"id": 7, "text": "Words."}\n{"id": 7, "text": "Others."}\n{"text": "Without."}\n'


@pytest.mark.parametrize(
    ("kind", "name", "text", "more", "kept", "again"),
    [
        (MediaWikiSource, "x.xml", PAGE * 3, {}, 3, 0),
        (PubmedSource, "x.xml", PUBMED * 2, {}, 2, 0),
        (OaiSource, "x.xml", OAI * 2, {}, 2, 0),
        (CsvSource, "x.csv", CSV, {"id_field": "id"}, 4, 0),
        (JsonlSource, "x.jsonl", JSONL, {"id_field": "id"}, 3, 0),
        (StackExchangeSource, "Posts.xml", QUESTION * 2 + ANSWER * 3, {}, 1, 3),
        (RedditSource, "RS_2023-01", SUBMISSION * 2, {}, 1, 1),
        (TwitterSource, "x.json", TWEET * 2, {}, 1, 1),
        (TwitterSource, "x.json", TWEET_2 * 2, {}, 1, 1),
        (TwitterSource, "x.json", TWEET_2 + TWEET, {}, 2, 0),  # of two versions of the interface: told apart
        (MboxSource, "x.mbox", MESSAGE * 2, {}, 1, 1),
        (DiscourseSource, "x.json", TOPIC, {}, 1, 1),
    ],
)
def test_a_record_that_comes_twice(
    tmp_path: Path, kind: type[FileSource], name: str, text: str, more: dict, kept: int, again: int
) -> None:
    (tmp_path / name).write_text(text)
    source = kind(name="s", paths=(str(tmp_path / name),), **more)
    documents, drops = read(source)  # asserts that ids are unique
    assert len(documents) == kept and reasons(drops) == ({"repeated_id": again} if again else {})
    counts = read_source(source, tmp_path / "out", LocalPool(workers=1), shard_bytes=1 << 20)
    assert (counts.read, counts.kept, counts.dropped) == (kept + again, kept, again)


def test_a_repeated_answer_stands_once_in_its_thread_and_wiki_rows_keep_their_own_places(tmp_path: Path) -> None:
    (tmp_path / "Posts.xml").write_text(QUESTION + ANSWER * 2 + WIKI_ROW * 2)
    (document,), drops = read(StackExchangeSource(name="s", paths=(str(tmp_path),)))
    assert document.text == "# T\n\nQ\n\n## Answer\n\nA" and document.meta["records"] == 2
    assert reasons(drops) == {"tag_wiki": 2, "repeated_id": 1}


def test_parquet_ids_have_their_row_behind_them(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"id": ["a", "a", None, "2"], "text": ["One.", "Two.", "Three.", "Four."]})
    pq.write_table(table, tmp_path / "x.parquet")
    documents, _ = read(ParquetSource(name="s", paths=(str(tmp_path),), id_field="id"))
    names = [document.id.removeprefix("s:x.parquet:") for document in documents]
    assert names == ["a@0", "a@1", "2", "2@3"]


def test_names_that_differ_only_in_white_space_are_two_documents(tmp_path: Path) -> None:
    names = ["a b.txt", "a_b.txt", "a%20b.txt", "a\u2003b.txt"]
    for name in names:
        (tmp_path / name).write_text(name)
    documents, _ = read(TextFolder(name="s", paths=(str(tmp_path),)))
    found = {document.text: document.id for document in documents}
    assert found["a b.txt"] == "s:a%20b.txt" and found["a%20b.txt"] == "s:a%2520b.txt"
    assert len(set(found.values())) == 4
    assert not any(character.isspace() for name in found.values() for character in name)
