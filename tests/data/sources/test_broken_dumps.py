"""Dumps of dialogue that end early or hold one bad value: what stands before the fault is kept."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from unittest import mock

import pytest

from data.sources.forums import MboxSource
from data.sources.limits import ReadLimits
from data.sources.reddit import RedditSource
from data.sources.stack_exchange import StackExchangeSource
from data.sources.twitter import TwitterSource
from tests.data.sources.helpers import read, reasons


def test_an_account_archive_is_read_post_by_post(tmp_path: Path) -> None:
    posts = [{"tweet": {"id_str": str(number), "full_text": f"Caf\u00e9 {number}"}} for number in range(5)]
    path = tmp_path / "tweets.js"
    for chunk in (1, 7, 1 << 20):
        with mock.patch("data.sources.json_array.CHUNK", chunk):
            path.write_text("window.YTD.tweets.part0 =\n" + json.dumps(posts, indent=1, ensure_ascii=False) + ";\n")
            documents, drops = read(TwitterSource(name="t", paths=(str(path),)))
            assert [d.text for d in documents] == [f"Caf\u00e9 {number}" for number in range(5)] and not drops
            path.write_bytes(
                b'[{"id": "1", "text": "a"}, {"id": "2", "text": "\xe9"}, 12, {"id": "3", "text": "c"}, {"id'
            )
            documents, drops = read(TwitterSource(name="t", paths=(str(path),)))
            assert [d.text for d in documents] == ["a", "c"]
            assert reasons(drops) == {"bad_json": 2, "not_an_object": 1}
            path.write_bytes(b'[{"id": "1", "text": "a"}, {"id": "2", "text": "' + b"x" * 5000 + b'"}]')
            (document,), (drop,) = read(
                TwitterSource(name="t", paths=(str(path),), limits=ReadLimits(max_record_bytes=1000))
            )
            assert document.text == "a" and drop.drop.reason == "record_too_large"


@pytest.mark.parametrize("kind", ["x.jsonl.gz", "x.json.gz", "x.mbox.gz", "posts.xml.gz", "RS_2023-01.gz"])
def test_what_stands_before_the_fault_of_a_dump_is_kept(kind: str, tmp_path: Path) -> None:
    """Threads come out when their file is read to its end; one that ends early has threads as well."""
    rng = random.Random(0)
    noise = [rng.randbytes(100).hex() for _ in range(2000)]
    tweets = [{"id": str(number), "text": text} for number, text in enumerate(noise)]
    rows = (f'<row Id="{number}" PostTypeId="1" Body="{text}" />\n' for number, text in enumerate(noise))
    mails = (f"From a@b 10:00\nMessage-ID: <{number}@b>\n\n{text}\n\n" for number, text in enumerate(noise))
    submissions = ({"id": str(number), "title": text, "author": "a"} for number, text in enumerate(noise))
    source, text = {
        "x.jsonl.gz": (TwitterSource, "\n".join(map(json.dumps, tweets))),
        "x.json.gz": (TwitterSource, json.dumps(tweets)),
        "x.mbox.gz": (MboxSource, "".join(mails)),
        "posts.xml.gz": (StackExchangeSource, "<posts>\n" + "".join(rows)),
        "RS_2023-01.gz": (RedditSource, "\n".join(json.dumps({**post, "selftext": "x"}) for post in submissions)),
    }[kind]
    whole = gzip.compress(text.encode())
    (tmp_path / kind).write_bytes(whole[: len(whole) // 2])
    documents, drops = read(source(name="d", paths=(str(tmp_path / kind),)))
    assert 800 < len(documents) < 1200 and reasons(drops) == {"corrupt_file": 1}
