"""Inputs of the bench of readers: about so many megabytes of each format, from made-up words."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

WORDS = [
    f"{a}{b}{c}"
    for a in ("ka", "lo", "mi", "ren", "tas", "vu")
    for b in ("", "ne", "ri", "sto")
    for c in ("", "n", "do", "mu")
]


def sentences(rng: random.Random, characters: int) -> str:
    """Made-up prose of about that length, in lines of 70 characters."""
    out, line = [], ""
    while characters > 0:
        word = rng.choice(WORDS)
        line += word + (". " if rng.random() < 0.08 else " ")
        if len(line) > 70:
            out.append(line)
            characters -= len(line) + 1
            line = ""
    return "\n".join(out)


def records(name: str, count: int, rng: random.Random) -> Iterator[bytes]:
    """`count` records of a format that is one record after the other."""
    for number in range(count):
        text = sentences(rng, 3000)
        escaped = text.replace("&", "&amp;").replace("<", "&lt;")
        if name.startswith("jsonl") or name == "twitter":
            key = {"id": str(number), "text": text, "lang": "en"} if name == "twitter" else {"text": text, "n": number}
            yield json.dumps(key).encode() + b"\n"
        elif name == "csv":
            yield f'{number},"{text}"\n'.encode()
        elif name == "reddit":
            yield (
                json.dumps(
                    {"id": f"s{number}", "title": "A question", "selftext": text, "author": "a", "score": 2}
                ).encode()
                + b"\n"
            )
            for reply in range(4):
                body = {
                    "id": f"c{number}x{reply}",
                    "link_id": f"t3_s{number}",
                    "parent_id": f"t3_s{number}",
                    "body": text[:800],
                }
                yield json.dumps({**body, "author": "b", "score": reply}).encode() + b"\n"
        elif name == "stack_exchange":
            kind = (
                f'PostTypeId="1" Title="T{number}"'
                if number % 3 == 0
                else f'PostTypeId="2" ParentId="{number - number % 3}"'
            )
            markup = "&lt;p&gt;" + escaped.replace("\n", "&lt;/p&gt;&#xA;&lt;p&gt;") + "&lt;/p&gt;"
            yield f'  <row Id="{number}" {kind} Score="3" CreationDate="2020-01-01" Body="{markup}" />\n'.encode()
        elif name == "mediawiki":
            wiki = f"'''Page''' in [[link|label]].<ref>x</ref>\n== Part ==\n{text}{{{{t|a=b}}}}".replace("<", "&lt;")
            revision = f"<revision><text>{wiki}</text></revision>"
            yield f"<page><title>P{number}</title><ns>0</ns><id>{number}</id>{revision}</page>\n".encode()
        elif name == "pubmed":
            article = f"<ArticleTitle>T</ArticleTitle><Abstract><AbstractText>{escaped}</AbstractText></Abstract>"
            citation = f"<MedlineCitation><PMID>{number}</PMID><Article>{article}</Article></MedlineCitation>"
            yield f"<PubmedArticle>{citation}</PubmedArticle>\n".encode()
        elif name == "oai":
            inner = f"<arXiv><id>{number}</id><title>T</title><abstract>{escaped}</abstract></arXiv>"
            header = f"<header><identifier>oai:{number}</identifier></header>"
            yield f"<record>{header}<metadata>{inner}</metadata></record>\n".encode()
        elif name == "mbox":
            head = "From a@b.example Mon Jan  1 10:00:00 2024\nFrom: A <a@b.example>\n"
            head += f"Subject: S{number}\nMessage-ID: <{number}@b>\n\n"
            yield head.encode() + text.encode() + b"\n\n"


def page_of(rng: random.Random) -> str:
    """An HTML page of 20 kB."""
    paragraphs = sentences(rng, 20_000).replace("\n", "</p>\n<p>")
    return f"<html><head><title>T</title></head><body><article><p>{paragraphs}</p></article></body></html>"


def wat_of(rng: random.Random) -> str:
    """A WAT record of 5 kB."""
    links = [{"path": "A@/href", "url": f"https://a.example/{word}"} for word in sentences(rng, 1000).split()]
    page = {"Head": {"Title": sentences(rng, 80), "Metas": [{"name": "description", "content": "x y"}]}, "Links": links}
    metadata = {"HTTP-Response-Metadata": {"HTML-Metadata": page}}
    return json.dumps({"Envelope": {"Payload-Metadata": metadata}})


def warc_records(kind: str, count: int, rng: random.Random) -> Iterator[bytes]:
    """WARC responses, WET conversions or WAT metadata."""
    for number in range(count):
        body = page_of(rng) if kind == "warc" else wat_of(rng) if kind == "wat" else sentences(rng, 5000)
        http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" if kind == "warc" else b""
        block = http + body.encode()
        types = {
            "warc": ("response", "application/http;msgtype=response"),
            "wet": ("conversion", "text/plain"),
            "wat": ("metadata", "application/json"),
        }[kind]
        head = f"WARC/1.0\r\nWARC-Type: {types[0]}\r\nWARC-Target-URI: https://a.example/{number}\r\n"
        head += f"Content-Type: {types[1]}\r\n"
        yield gzip.compress(f"{head}Content-Length: {len(block)}\r\n\r\n".encode() + block + b"\r\n\r\n", 1)


def repeat(make: Any, size: int, path: Path, head: bytes = b"", tail: bytes = b"", pack: Any = None) -> int:
    """Write about `size` decompressed bytes: 8 MB of records, then the same again. Returns the bytes."""
    pieces = list(make)
    block = b"".join(pieces)
    total = 0
    with path.open("wb") as out:
        out.write(pack(head) if pack and head else head)
        packed = pack(block) if pack else block
        while total < size:
            out.write(packed)
            total += len(block)
        out.write(pack(tail) if pack and tail else tail)
    return total


def generate(name: str, folder: Path, megabytes: int) -> tuple[str, int]:
    """(path, decompressed bytes) of a reader's input."""
    rng, size = random.Random(0), megabytes << 20
    suffixes = {"jsonl": "x.jsonl", "jsonl_zst": "x.jsonl.zst", "csv": "x.csv", "reddit": "RS_2023-01",
                "twitter": "x.json", "stack_exchange": "Posts.xml", "mbox": "x.mbox"}  # fmt: skip
    if name in ("warc", "wet", "wat"):
        path = folder / f"x.{name}.gz"
        pieces = list(warc_records(name, 200, rng))
        inner = sum(len(gzip.decompress(piece)) for piece in pieces)
        times = max(size // inner, 1)
        path.write_bytes(b"")
        with path.open("ab") as out:
            for _ in range(times):
                out.write(b"".join(pieces))
        return str(path), inner * times
    if name in ("text", "jats", "gutenberg", "epub", "notebook", "arxiv", "html", "discourse", "forum_pages"):
        return _folder(name, folder, size, rng)
    if name in ("parquet", "array_record", "tfds"):
        return _binary(name, folder, size, rng)
    if name == "git":
        return _repository(folder, size, rng)
    path = folder / suffixes.get(name, "x.xml")
    heads = {"csv": b"n,text\n", "stack_exchange": b"<posts>\n"}
    pack = None
    if name in ("jsonl_zst", "reddit"):
        import zstandard

        pack = zstandard.ZstdCompressor().compress
    if name in ("stack_exchange", "reddit", "twitter", "mbox"):  # ids must differ: every block is written anew
        total, block = 0, b"".join(records(name, 3000, random.Random(0)))
        with path.open("wb") as out:
            out.write(heads.get(name, b""))
            for start in range(0, 10**9, 3000):
                fresh = _renumber(block, name, start)
                out.write(pack(fresh) if pack else fresh)
                total += len(fresh)
                if total >= size:
                    break
        return str(path), total
    return str(path), repeat(records(name, 2500, rng), size, path, heads.get(name, b""), pack=pack)


def _renumber(block: bytes, name: str, start: int) -> bytes:
    """The same records with other ids."""
    if start == 0:
        return block
    shift = str(start).encode()
    pattern = {
        "stack_exchange": rb'( (?:Id|ParentId)=")(\d)',
        "reddit": rb'((?:"id": "|"t3_)[sc])(\d)',
        "twitter": rb'("id": ")(\d)',
        "mbox": rb"(Message-ID: <)(\d)",
    }[name]
    return re.sub(pattern, lambda match: match.group(1) + shift + b"0" + match.group(2), block)


def _folder(name: str, folder: Path, size: int, rng: random.Random) -> tuple[str, int]:
    total = number = 0
    papers: list[bytes] = []
    while total < size:
        if number < 8:
            text = page_of(rng) if name == "html" else sentences(rng, 300_000)
        if name in ("text", "html"):
            data, suffix = text.encode(), "txt" if name == "text" else "html"
        elif name == "forum_pages":
            post = (
                '<div class="post"><p class="author"><strong>a</strong></p><div class="postbody"><div class="content">'
            )
            thread = "".join(f"{post}{part}</div></div></div>" for part in text[:60_000].split(".\n"))
            data, suffix = f"<html><title>T</title><body>{thread}</body></html>".encode(), "html"
        elif name == "discourse":
            posts = [{"username": "a", "cooked": f"<p>{part}</p>"} for part in text.split(".\n")]
            data, suffix = json.dumps({"id": number, "title": "T", "post_stream": {"posts": posts}}).encode(), "json"
        elif name == "gutenberg":
            data, suffix = (
                f"*** START OF THIS PROJECT GUTENBERG EBOOK T ***\n{text}\n*** END OF THIS PROJECT GUTENBERG".encode(),
                "txt",
            )
        elif name == "jats":
            body = "".join(f"<sec><title>S</title><p>{part}</p></sec>" for part in text.split(". "))
            data, suffix = f"<article><front/><body>{body}</body></article>".encode(), "nxml"
        elif name == "notebook":
            cells = [{"cell_type": "code", "source": part.splitlines(True)} for part in text.split(". ")]
            data, suffix = json.dumps({"cells": cells}).encode(), "ipynb"
        elif name == "arxiv":
            body = "\\section{S} $x^2$ \\me{y} ".join(text.split(". "))
            data = (
                f"\\documentclass{{a}}\\newcommand{{\\me}}[1]{{#1}}\\begin{{document}}{body}\\end{{document}}".encode()
            )
            papers.append(gzip.compress(data, 1))
            suffix = ""
        else:
            from tests.data.sources.test_book_and_dialogue_sources import epub

            data, suffix = text.encode(), ""
            chapter = "<html><body>" + "".join(f"<p>{line}</p>" for line in text.splitlines()) + "</body></html>"
            epub(folder / f"{number:06d}.epub", **{"OEBPS/one.xhtml": chapter})
        if suffix:
            (folder / f"{number:06d}.{suffix}").write_bytes(data)
        total += len(data)
        number += 1
    if papers:
        with tarfile.open(folder / "x.tar", "w") as archive:
            for index, paper in enumerate(papers):
                info = tarfile.TarInfo(f"2001/2001.{index:05d}.gz")
                info.size = len(paper)
                archive.addfile(info, io.BytesIO(paper))
    return str(folder), total


def _binary(name: str, folder: Path, size: int, rng: random.Random) -> tuple[str, int]:
    texts = [sentences(rng, 3000) for _ in range(2000)]
    inner = sum(map(len, texts))
    path, times = folder / f"x.{name}", max(size // inner, 1)
    if name == "tfds":
        from tensorflow_datasets.core import shuffle

        from tests.data.sources.test_disk_sources import prepare_tfds

        with mock.patch.object(shuffle, "MAX_MEM_BUFFER_SIZE", 2 * size):  # beyond it TFDS shuffles with TensorFlow
            return prepare_tfds(folder, texts * times), inner * times
    if name == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({"text": texts})
        with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
            for _ in range(times):
                writer.write_table(table)
    else:
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(path), "group_size:1")
        for _ in range(times):
            for text in texts:
                writer.write(text.encode())
        writer.close()
    return str(path), inner * times


def _repository(folder: Path, size: int, rng: random.Random) -> tuple[str, int]:
    """A commit of Python files of 100 kB: eight contents under thousands of names, each read for itself."""

    def git(*arguments: str, text: str = "") -> str:
        identity = ["-c", "user.name=b", "-c", "user.email=b@b.example"]
        command = ["git", "-C", str(folder), *identity, *arguments]
        return subprocess.run(command, input=text, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q", "-b", "main", ".")
    texts = ["".join(f"# {line}\nx = 1\n" for line in sentences(rng, 100_000).split("\n")) for _ in range(8)]
    blobs = [git("hash-object", "-w", "--stdin", text=text) for text in texts]
    count = max(size // len(texts[0]), 1)
    tree = git("mktree", text="".join(f"100644 blob {blobs[i % 8]}\tf{i:06d}.py\n" for i in range(count)))
    git("update-ref", "refs/heads/main", git("commit-tree", "-m", "b", tree))
    return str(folder), sum(len(texts[i % 8]) for i in range(count))
