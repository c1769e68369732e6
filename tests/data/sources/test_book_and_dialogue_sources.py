"""Books (Gutenberg, EPUB) and dialogue (Reddit, Twitter, Discourse, mbox)."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
import zstandard

from data.sources.dialogue import MAX_TURNS
from data.sources.epub import EpubSource
from data.sources.forum_pages import ForumPageSource
from data.sources.forums import DiscourseSource, MboxSource
from data.sources.gutenberg import GutenbergSource, split_book
from data.sources.limits import ReadLimits
from data.sources.reddit import RedditSource, is_bot
from data.sources.stated import iso_date, language_code
from data.sources.twitter import TwitterSource
from tests.data.sources.helpers import read, reasons

# ---- books


@pytest.mark.real_data
def test_alice_without_header_and_tail(real_data: Path) -> None:
    (book,), drops = read(GutenbergSource(name="g", paths=(str(real_data / "gutenberg"),)))
    assert not drops and book.text.startswith("ALICE'S ADVENTURES IN WONDERLAND\n\nLewis Carroll")
    assert book.text.endswith("THE END") and "Gutenberg" not in book.text and "Foundation" not in book.text
    assert len(book.meta["chapters"]) == 12 and "\n## CHAPTER V. Advice from a Caterpillar\n" in book.text
    assert book.meta["title"] == "Alice's Adventures in Wonderland" and book.meta["author"] == "Lewis Carroll"
    assert (
        book.meta["gutenberg_id"] == 11 and book.meta["language"] == "en" and book.meta["licence"] == "Public-Domain-US"
    )


def test_other_gutenberg_headers_and_texts_that_are_none(tmp_path: Path) -> None:
    new = (
        "Title: X\n  and Y\nLanguage: French\n"
        "*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\nProduced by A\nand B\n\nText.\n\n"
        "End of Project Gutenberg's X\nlegal"
    )
    text, meta = split_book(new)
    assert text == "Text." and meta["title"] == "X and Y" and meta["language"] == "fr" and meta["has_end_mark"]
    since_2022 = "Release date: June 27, 2008 [eBook #11]\n                Most recently updated: June 26, 2025\n\n"
    assert split_book(since_2022 + new)[1]["date"] == "2008-06-27" and split_book(since_2022 + new)[0] == "Text."
    (tmp_path / "no.txt").write_text("A text of somebody.")
    (tmp_path / "cut.txt").write_text("*** START OF THIS PROJECT GUTENBERG EBOOK X ***\nOnly text.")
    documents, drops = read(GutenbergSource(name="g", paths=(str(tmp_path),)))
    assert [d.text for d in documents] == ["Only text."] and reasons(drops) == {"not_a_gutenberg_text": 1}
    documents, drops = read(GutenbergSource(name="g", paths=(str(tmp_path),), with_marks_only=False))
    assert len(documents) == 2 and not drops


OPF = """<package xmlns="http://www.idpf.org/2007/opf"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">
<dc:title>The Book</dc:title><dc:creator>A. Writer</dc:creator><dc:language>en</dc:language></metadata><manifest>
<item id="n" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>
<item id="b" href="two%20b.xhtml" media-type="application/xhtml+xml"/>
<item id="a" href="one.xhtml" media-type="application/xhtml+xml"/>
<item id="x" href="../../etc/passwd" media-type="application/xhtml+xml"/>
<item id="m" href="missing.xhtml" media-type="application/xhtml+xml"/></manifest>
<spine><itemref idref="n"/><itemref idref="a"/><itemref idref="b"/>
<itemref idref="x"/><itemref idref="m"/></spine></package>"""
CONTAINER = '<container><rootfiles><rootfile full-path="OEBPS/content.opf"/></rootfiles></container>'


def epub(path: Path, **more: bytes | str) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("META-INF/container.xml", CONTAINER)
        book.writestr("OEBPS/content.opf", OPF)
        book.writestr("OEBPS/nav.xhtml", "<html><body>Contents</body></html>")
        book.writestr(
            "OEBPS/one.xhtml",
            "<html><head><title>x</title></head><body><h1>One</h1><p>First &amp; last.</p></body></html>",
        )
        book.writestr("OEBPS/two b.xhtml", "<html><body><h1>Two</h1><p>Second.</p></body></html>")
        for name, data in more.items():
            book.writestr(name, data)


def test_epub_chapters_in_reading_order_and_hostile_books(tmp_path: Path) -> None:
    epub(tmp_path / "good.epub")
    epub(tmp_path / "locked.epub", **{"META-INF/encryption.xml": "<e"})
    (tmp_path / "broken.epub").write_bytes((tmp_path / "good.epub").read_bytes()[:-30])
    with zipfile.ZipFile(tmp_path / "bomb.epub", "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("META-INF/container.xml", CONTAINER)
        book.writestr("OEBPS/content.opf", bytes(20 << 20))
    documents, drops = read(EpubSource(name="e", paths=(str(tmp_path),)))
    assert [d.text for d in documents] == ["# One\n\nFirst & last.\n\n# Two\n\nSecond."]
    assert documents[0].meta["title"] == "The Book" and documents[0].meta["authors"] == ["A. Writer"]
    assert reasons(drops) == {
        "path_climbs_out": 1,
        "corrupt_record": 1,
        "encrypted": 1,
        "corrupt_file": 1,
        "expands_too_far": 1,
    }
    chapters, _ = read(EpubSource(name="e", paths=(str(tmp_path / "good.epub"),), per_chapter=True))
    assert [c.text for c in chapters] == ["# One\n\nFirst & last.", "# Two\n\nSecond."]


def test_epub_chapters_without_text_are_drops(tmp_path: Path) -> None:
    epub(tmp_path / "cover.epub", **{"OEBPS/missing.xhtml": "<html><body><img src='cover.png'/></body></html>"})
    chapters, drops = read(EpubSource(name="e", paths=(str(tmp_path),), per_chapter=True))
    assert len(chapters) == 2 and reasons(drops) == {"path_climbs_out": 1, "empty_text": 1}


def test_epub_chapters_are_read_as_xml_in_utf_8(tmp_path: Path) -> None:
    named = '<?xml version="1.0" encoding="iso-8859-1"?>{}'
    head = '<html xmlns="http://www.w3.org/1999/xhtml"><head><title/><script src="x"/></head>'
    page = f"{head}<body><p>Größe</p></body></html>"
    epub(
        tmp_path / "x.epub",
        **{"OEBPS/one.xhtml": page, "OEBPS/two b.xhtml": named.format("<p>Übung<br>fort").encode("latin-1"),
           "OEBPS/missing.xhtml": "<p>naïve – not <b>closed"},
    )  # fmt: skip
    (book,), _ = read(EpubSource(name="e", paths=(str(tmp_path),)))
    assert book.text == "Größe\n\nÜbung\nfort\n\nnaïve – not closed"


ENCRYPTION = """<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container"
 xmlns:enc="http://www.w3.org/2001/04/xmlenc#">{}</encryption>"""
ENCRYPTED = """<enc:EncryptedData><enc:EncryptionMethod Algorithm="{0}"/>
<enc:CipherData><enc:CipherReference URI="{1}"/></enc:CipherData></enc:EncryptedData>"""
IDPF, ADOBE = "http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC"
AES = "http://www.w3.org/2001/04/xmlenc#aes128-cbc"


@pytest.mark.parametrize(
    ("items", "encrypted"),
    [
        ([(IDPF, "OEBPS/a.otf"), (ADOBE, "OEBPS/b.ttf")], False),
        ([], False),
        ([(IDPF, "OEBPS/a.otf"), (AES, "OEBPS/cover.jpg")], True),
        ([(IDPF, "OEBPS/two%20b.xhtml")], True),
    ],
)
def test_an_epub_with_obfuscated_fonts_is_not_encrypted(
    tmp_path: Path, items: list[tuple[str, str]], encrypted: bool
) -> None:
    declared = ENCRYPTION.format("".join(ENCRYPTED.format(*item) for item in items))
    epub(tmp_path / "x.epub", **{"META-INF/encryption.xml": declared})
    documents, drops = read(EpubSource(name="e", paths=(str(tmp_path),)))
    assert (reasons(drops) == {"encrypted": 1}) is encrypted and len(documents) == (not encrypted)


# ---- dialogue


def ndjson(*records: dict) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def comment(name: str, parent: str, body: str, score: int = 1, author: str = "bob", thread: str = "t3_a") -> dict:
    return {
        "id": name,
        "link_id": thread,
        "parent_id": parent,
        "body": body,
        "score": score,
        "author": author,
        "created_utc": 5,
    }


REDDIT = [
    {
        "id": "a",
        "title": "Why &amp; how?",
        "selftext": "Tell me.",
        "author": "ann",
        "score": 7,
        "subreddit": "ask",
        "created_utc": 1,
    },
    {"id": "z", "title": "Adult", "selftext": "", "author": "x", "score": 1, "subreddit": "ask", "over_18": True},
]
COMMENTS = [
    comment("1", "t3_a", "Because.", 3),
    comment("2", "t3_a", "Better answer.", 9, "eve"),
    comment("3", "t1_2", "Thanks!", 2, "ann"),
    comment("4", "t3_a", "[deleted]", 1, "[deleted]"),
    comment("5", "t3_a", "I am a bot, and this action was performed automatically.", 1, "AutoModerator"),
    comment("6", "t1_99", "Parent is gone.", 1),
    comment("7", "t3_zzz", "Thread is gone.", 1, thread="t3_zzz"),
    comment("3", "t1_2", "Twice", 1),
]


def test_reddit_threads_are_rebuilt_from_two_dumps(tmp_path: Path) -> None:
    compress = zstandard.ZstdCompressor().compress
    (tmp_path / "RC_2023-01.zst").write_bytes(compress(ndjson(*COMMENTS) + b"{broken\n"))
    (tmp_path / "RS_2023-01.zst").write_bytes(compress(ndjson(*REDDIT)))
    source = RedditSource(name="r", paths=(str(tmp_path),))
    assert len(source.shards()) == 1
    (document,), drops = read(source)
    assert document.text == "# Why & how?\n\nann: Tell me.\n\neve: Better answer.\n\nann: Thanks!\n\nbob: Because."
    assert document.meta["records"] == 4 and document.meta["scores"] == [7, 9, 2, 3] and document.meta["score"] == 7
    assert reasons(drops) == {
        "over_18": 1,
        "deleted": 1,
        "bot": 1,
        "parent_missing": 1,
        "submission_missing": 1,
        "repeated_id": 1,
        "bad_json": 1,
    }
    assert document.meta["records"] + len(drops) == len(REDDIT) + len(COMMENTS) + 1
    (chat,), drops = read(RedditSource(name="r", paths=(str(tmp_path),), form="messages"))
    assert chat.meta["messages"] == [
        {"role": "user", "content": "Why & how?\n\nTell me."},
        {"role": "assistant", "content": "Better answer."},
        {"role": "user", "content": "Thanks!"},
    ]
    assert reasons(drops)["not_on_best_path"] == 1
    assert (
        is_bot("wiki_bot_7", "")
        and is_bot("HelperBot", "")
        and not is_bot("mrrobot", "hi")
        and not is_bot("bottle", "x")
    )
    with pytest.raises(ValueError, match="form is 'chat'"):
        RedditSource(name="r", paths=(), form="chat")


def test_twitter_of_both_versions_and_an_account_archive(tmp_path: Path) -> None:
    old: list[dict] = [
        {"id_str": "1", "full_text": "Cut \u2026", "user": {"screen_name": "ann"}, "lang": "en", "favorite_count": 3,
         "extended_tweet": {"full_text": "A whole thought &amp; more https://t.co/x", "entities": {}}},
        {"id_str": "2", "text": "@ann agreed", "user": {"screen_name": "bob"}, "in_reply_to_status_id_str": "1"},
        {"id_str": "3", "text": "RT @ann: A whole", "user": {"screen_name": "eve"},
         "retweeted_status": {"id_str": "9", "text": "Original", "user": {"screen_name": "zed"}}},
        {"delete": {"status": {"id": 4}}},
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_bytes(ndjson(*old) + b"nonsense\n[1]\n")
    documents, drops = read(TwitterSource(name="t", paths=(str(tmp_path / "a.jsonl"),)))
    assert [d.text for d in documents] == ["ann: A whole thought & more\n\nbob: agreed", "Original"]
    assert reasons(drops) == {"retweet": 1, "not_a_post": 1, "bad_json": 1, "not_an_object": 1}
    page = {
        "data": [
            {"id": "10", "text": "One", "author_id": "7", "conversation_id": "10"},
            {"id": "11", "text": "two", "author_id": "7", "conversation_id": "10",
             "referenced_tweets": [{"type": "replied_to", "id": "10"}]},
            {"id": "12", "text": "RT", "author_id": "8", "referenced_tweets": [{"type": "retweeted", "id": "10"}]},
        ],
        "includes": {"users": [{"id": "7", "username": "ann"}]},
    }  # fmt: skip
    (tmp_path / "b.json").write_text(json.dumps(page))
    documents, drops = read(TwitterSource(name="t", paths=(str(tmp_path / "b.json"),)))
    assert [d.text for d in documents] == ["One\n\ntwo"] and reasons(drops) == {"retweet": 1}
    (tmp_path / "tweets.js").write_text(
        "window.YTD.tweets.part0 = " + json.dumps([{"tweet": {"id_str": "5", "full_text": "Mine"}}])
    )
    (document,), _ = read(TwitterSource(name="t", paths=(str(tmp_path / "tweets.js"),), form="messages"))
    assert document.meta["messages"] == [{"role": "user", "content": "Mine"}]
    ring = [
        {"id_str": "1", "text": "a", "in_reply_to_status_id_str": "2"},
        {"id_str": "2", "text": "b", "in_reply_to_status_id_str": "1"},
    ]
    (tmp_path / "ring.json").write_bytes(ndjson(*ring))
    documents, drops = read(TwitterSource(name="t", paths=(str(tmp_path / "ring.json"),)))
    assert len(documents) == 1 and documents[0].meta["records"] == 2


def test_posts_beyond_the_cap_of_a_thread_are_kept_and_threads_join_in_any_order(tmp_path: Path) -> None:
    many = [{"id_str": f"a{number}", "text": f"Post {number}"} for number in range(10 * MAX_TURNS + 50)]
    replies = {"4": "3", "3": "1", "2": "1", "6": "5", "5": "2", "1": None}  # newest first, as an account's archive is
    thread = [{"id_str": name, "text": f"t{name}", "in_reply_to_status_id_str": to} for name, to in replies.items()]
    (tmp_path / "x.jsonl").write_bytes(ndjson(*thread, *many, {"id_str": "a7", "text": "Post 7"}))
    documents, drops = read(TwitterSource(name="t", paths=(str(tmp_path / "x.jsonl"),)))
    assert reasons(drops) == {"repeated_id": 1} and len(documents) == len(many) + 1
    assert documents[0].id == "t:x.jsonl:1" and documents[0].text.split() == ["t1", "t3", "t4", "t2", "t5", "t6"]
    late = {
        "id_str": "a7",
        "text": "Post 7",
        "in_reply_to_status_id_str": "a9",
    }  # now said to be a reply
    (tmp_path / "x.jsonl").write_bytes(ndjson(*many[:20], late))
    documents, drops = read(TwitterSource(name="t", paths=(str(tmp_path / "x.jsonl"),)))
    assert len(documents) == 20 and reasons(drops) == {"repeated_id": 1}


def test_discourse_topics(tmp_path: Path) -> None:
    posts = [
        {"id": 1, "username": "ann", "cooked": "<p>How?</p>", "like_count": 2},
        {"id": 2, "username": "bob", "cooked": "<p>So:</p><pre><code class='lang-sh'>ls</code></pre>"},
        {"id": 3, "username": "sys", "cooked": "closed", "post_type": 3},
        {"id": 4, "username": "x", "cooked": "", "hidden": False},
        "junk",
    ]
    (tmp_path / "1.json").write_text(
        json.dumps({"id": 1, "title": "Help", "tags": ["a"], "post_stream": {"posts": posts}})
    )
    (tmp_path / "2.json").write_text('{"post_stream": 3}')
    (document,), drops = read(DiscourseSource(name="d", paths=(str(tmp_path),), form="messages"))
    assert document.text == "# Help\n\nann: How?\n\nbob: So:\n\n```sh\nls\n```"
    assert document.meta["messages"][0] == {"role": "user", "content": "Help\n\nHow?"}
    assert reasons(drops) == {"deleted": 1, "empty_text": 1, "not_a_post": 1, "bad_json": 1}


PHPBB = """<title>Clean it</title><body><ul><li><a href="./faq.php">FAQ</a></li></ul>{}<div>Powered by phpBB</div>"""
PHPBB_POST = """<div id="p{0}" class="post has-profile bg1"><dl class="postprofile"><dd>Posts: 12</dd></dl>
<div class="postbody"><h3>Re: Clean it</h3><p class="author">by <strong>{1}</strong> &raquo; 2024</p>
<div class="content">{2}</div></div></div>"""
PHPBB_2_POST = """<tr><td><span class="name"><b>{1}</b></span></td>
<td><table><tr><td><span class="postbody">{2}</span></td></tr></table></td></tr>"""
XENFORO_POST = """<article class="message message--post" data-author="{1}" id="js-{0}"><h4>{1}</h4>
<div class="message-userContent"><article><div class="bbWrapper">{2}</div></article></div></article>"""
SMF_POST = """<div class="post_wrapper"><div class="poster"><h4><a href="#">{1}</a></h4></div>
<div class="postarea"><div class="post"><div class="inner" id="msg_{0}">{2}</div></div></div></div>"""
VBULLETIN_POST = """<table id="post{0}"><tr><td><a class="bigusername" href="#">{1}</a></td>
<td><div id="post_message_{0}">{2}</div></td></tr></table>"""
SCHEMA_POST = """<div itemscope itemtype="https://schema.org/Comment"><span itemprop="author" itemscope>
<a><span itemprop="name">{1}</span></a></span><div itemprop="text">{2}</div></div>"""


@pytest.mark.parametrize("post", [PHPBB_POST, PHPBB_2_POST, XENFORO_POST, SMF_POST, VBULLETIN_POST, SCHEMA_POST])
def test_pages_of_forums_become_turns(tmp_path: Path, post: str) -> None:
    said = [("ann", "How do I <b>clean</b> it?"), ("bob", "With a brush.<br>Every day."), ("ann", "Thanks!")]
    page = PHPBB.format("".join(post.format(7 + i, name, text) for i, (name, text) in enumerate(said)))
    if post == PHPBB_2_POST:
        page = f"<table class='forumline'>{page}</table>"
    (tmp_path / "t.html").write_text(page)
    (tmp_path / "other.html").write_text("<title>News</title><article><p>An article, no thread.</p></article>")
    (document,), drops = read(ForumPageSource(name="f", paths=(str(tmp_path),), form="messages"))
    assert document.text == "# Clean it\n\nann: How do I clean it?\n\nbob: With a brush.\nEvery day.\n\nann: Thanks!"
    assert reasons(drops) == {"no_posts": 1} and document.meta["records"] == 3
    assert [message["role"] for message in document.meta["messages"]] == ["user", "assistant", "user"]


MBOX = b"""From ann@a.example Mon Jan  1 10:00:00 2024
From: Ann <ann@a.example>
Subject: [list] Question
Message-ID: <1@a>
Date: Mon, 1 Jan 2024 10:00:00 +0000

How does it work?
>From the start, please.
--
Ann

From bob@a.example Mon Jan  1 11:00:00 2024
From: =?utf-8?q?B=C3=B6b?= <bob@a.example>
Subject: Re: [list] Question
Message-ID: <2@a>
References: <1@a>
Content-Type: text/html; charset=utf-8

<p>Like <b>this</b>.</p>

From eve@a.example Mon Jan  1 12:00:00 2024
From: eve
Subject: Other

> only a quote
"""


def test_mbox_threads(tmp_path: Path) -> None:
    (tmp_path / "l.mbox").write_bytes(MBOX)
    (document,), drops = read(MboxSource(name="m", paths=(str(tmp_path),)))
    assert document.text == "# Question\n\nAnn: How does it work?\nFrom the start, please.\n\nBöb: Like this."
    assert document.meta["records"] == 2 and reasons(drops) == {"empty_text": 1}
    big = (
        MBOX
        + b"\nFrom big@x Mon Jan  1 12:00:00 2024\nSubject: b\n\n"
        + b"x" * 100_000
        + b"\n\n"
        + MBOX.replace(b"@a>", b"@b>")
    )
    (tmp_path / "l.mbox").write_bytes(big)
    documents, drops = read(MboxSource(name="m", paths=(str(tmp_path),), limits=ReadLimits(max_record_bytes=50_000)))
    assert len(documents) == 2 and reasons(drops) == {"empty_text": 2, "record_too_large": 1}


def test_an_epub_that_lies_about_sizes_is_still_bounded(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("META-INF/container.xml", CONTAINER)
        book.writestr("OEBPS/content.opf", b"<package>" + b"a" * 3_000_000)
    (tmp_path / "x.epub").write_bytes(stream.getvalue())
    documents, drops = read(EpubSource(name="e", paths=(str(tmp_path),), limits=ReadLimits(max_record_bytes=1 << 20)))
    assert not documents and reasons(drops) == {"expands_too_far": 1}


def test_mailman_archives_that_name_no_charset(tmp_path: Path) -> None:
    head = "From joe at x.org  Mon Jan  6 10:00:00 2020\nFrom: joe at x.org ({})\nSubject: Größe\n{}\n"
    (tmp_path / "a.mbox").write_bytes(
        (head.format("Joé Müller", "Message-ID: <1@x>\n") + "Die Übung – naïve.\n\n").encode()
        + (head.format("=?utf-8?q?Ann_=C3=89?=", "In-Reply-To: <1@x>\n")
           + "On Mon, Jan 6, 2020 at 10:00 AM Joe Müller <joe at x.org>\nwrote:\n> Die Übung\n\nJa, größer.").encode()
    )  # fmt: skip
    (document,), drops = read(MboxSource(name="m", paths=(str(tmp_path),)))
    assert document.text == "# Größe\n\nJoé Müller: Die Übung – naïve.\n\nAnn É: Ja, größer." and not drops
    western = head.format("A", "Content-Type: text/plain; charset=utf-8\n").encode() + "Größe überall".encode("cp1252")
    (tmp_path / "a.mbox").write_bytes(western)
    (document,), drops = read(MboxSource(name="m", paths=(str(tmp_path),)))
    assert document.text.endswith("A: Größe überall")


def test_dates_and_languages_of_all_sources_have_one_form() -> None:
    stated = (
        "Mon, 06 Jan 2020 10:00:00 +0100",
        "Wed Oct 10 20:19:24 +0000 2018",
        "March, 1994",
        1672531200,
        10**12,
        "x",
    )
    assert [iso_date(date) for date in stated] == [
        "2020-01-06T10:00:00+01:00", "2018-10-10T20:19:24+00:00", "1994-03", "2023-01-01T00:00:00Z", "1000000000000",
        "x",
    ]  # fmt: skip
    tags = ("eng", "EN", "en-US", "ger", "pt_BR", "Klingon", "", None)
    assert [language_code(tag) for tag in tags] == ["en", "en", "en", "de", "pt", "Klingon", "", None]


def test_retweets_of_an_account_s_own_archive_are_counted_and_topics_say_what_they_lack(tmp_path: Path) -> None:
    texts = {"1": "Mine.", "2": "RT @a: Cut…"}
    posts = [{"tweet": {"id_str": name, "full_text": text}} for name, text in texts.items()]
    (tmp_path / "tweets.js").write_text(f"window.YTD.tweets.part0 = {json.dumps(posts)}")
    (document,), drops = read(TwitterSource(name="t", paths=(str(tmp_path / "tweets.js"),)))
    assert document.text == "Mine." and reasons(drops) == {"retweet": 1}
    topic = {"id": 1, "post_stream": {"posts": [{"id": 5, "cooked": "<p>Hi</p>"}], "stream": [5, 6, 7]}}
    (tmp_path / "1.json").write_text(json.dumps(topic))
    (document,), _ = read(DiscourseSource(name="d", paths=(str(tmp_path / "1.json"),)))
    assert document.meta["posts_elsewhere"] == 2
