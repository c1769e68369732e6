"""Speed and peak memory of every reader, and the quality of extraction: `python -m tests.bench.sources [--mb 1000]`.

Each reader reads one generated file (or folder) of its real format in a process of its own on one core; MB are bytes on
disk, decompressed where the format is compressed. Prints a table and, as the last line, one JSON object:
{reader: [mb_per_s, peak_mb], "warc_over_fastwarc", "extraction_f1", "trafilatura_f1", "extraction_pages_per_s"}.
The last three need SLUICE_REAL_DATA.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WORDS = [
    f"{a}{b}{c}"
    for a in ("ka", "lo", "mi", "ren", "tas", "vu")
    for b in ("", "ne", "ri", "sto")
    for c in ("", "n", "do", "mu")
]
READERS = ("jsonl", "jsonl_zst", "parquet", "csv", "text", "array_record", "warc", "wet", "mediawiki", "stack_exchange",
           "reddit", "twitter", "mbox", "pubmed", "oai", "jats", "arxiv", "gutenberg", "epub", "notebook")  # fmt: skip


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
            body = "&lt;p&gt;" + escaped.replace("\n", "&lt;/p&gt;&#xA;&lt;p&gt;") + "&lt;/p&gt;"
            yield f'  <row Id="{number}" {kind} Score="3" CreationDate="2020-01-01" Body="{body}" />\n'.encode()
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


def warc_records(kind: str, count: int, rng: random.Random) -> Iterator[bytes]:
    """WARC responses or WET conversions."""
    for number in range(count):
        paragraphs = sentences(rng, 20_000).replace("\n", "</p>\n<p>")
        body = f"<html><body><p>{paragraphs}</p></body></html>" if kind == "warc" else sentences(rng, 5000)
        http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" if kind == "warc" else b""
        block = http + body.encode()
        types = ("response", "application/http;msgtype=response") if kind == "warc" else ("conversion", "text/plain")
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
    if name in ("warc", "wet"):
        path = folder / f"x.{name}.gz"
        pieces = list(warc_records(name, 200, rng))
        inner = sum(len(gzip.decompress(piece)) for piece in pieces)
        times = max(size // inner, 1)
        path.write_bytes(b"")
        with path.open("ab") as out:
            for _ in range(times):
                out.write(b"".join(pieces))
        return str(path), inner * times
    if name in ("text", "jats", "gutenberg", "epub", "notebook", "arxiv"):
        return _folder(name, folder, size, rng)
    if name in ("parquet", "array_record"):
        return _binary(name, folder, size, rng)
    path = folder / suffixes.get(name, "x.xml")
    heads = {"csv": b"n,text\n", "stack_exchange": b"<posts>\n"}
    pack = None
    if name in ("jsonl_zst", "reddit"):
        import zstandard

        pack = zstandard.ZstdCompressor().compress
    if name in ("stack_exchange", "reddit", "twitter", "mbox"):  # ids must differ: every block is written anew
        total = 0
        with path.open("wb") as out:
            out.write(heads.get(name, b""))
            for start in range(0, 10**9, 3000):
                block = b"".join(records(name, 3000, random.Random(start))) if start == 0 else block
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
        "stack_exchange": rb'((?:Id|ParentId)=")(\d)',
        "reddit": rb'((?:"id": "|"t3_)[sc])(\d)',
        "twitter": rb'("id": ")(\d)',
        "mbox": rb"(Message-ID: <)(\d)",
    }[name]
    return re.sub(pattern, lambda match: match.group(1) + shift + b"0" + match.group(2), block)


def _folder(name: str, folder: Path, size: int, rng: random.Random) -> tuple[str, int]:
    total = number = 0
    papers: list[bytes] = []
    while total < size:
        text = sentences(rng, 300_000) if number < 8 else text
        if name == "text":
            data, suffix = text.encode(), "txt"
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


def source_of(name: str, path: str) -> Any:
    """The source that reads what `generate` wrote."""
    from importlib import import_module

    kinds = {
        "jsonl": "jsonl.JsonlSource", "jsonl_zst": "jsonl.JsonlSource", "parquet": "parquet.ParquetSource",
        "csv": "csv_files.CsvSource", "text": "text_files.TextFolder",
        "warc": "warc.WarcSource", "wet": "warc.WarcSource",
        "array_record": "array_records.ArrayRecordSource", "mediawiki": "mediawiki.MediaWikiSource",
        "stack_exchange": "stack_exchange.StackExchangeSource", "reddit": "reddit.RedditSource",
        "twitter": "twitter.TwitterSource", "mbox": "forums.MboxSource", "pubmed": "pubmed.PubmedSource",
        "oai": "oai.OaiSource", "jats": "jats.JatsSource", "arxiv": "arxiv.ArxivSource", "epub": "epub.EpubSource",
        "gutenberg": "gutenberg.GutenbergSource", "notebook": "notebooks.NotebookFolder",
    }  # fmt: skip
    module, _, kind = kinds[name].partition(".")
    more = {"record": "text"} if name == "array_record" else {}
    return getattr(import_module(f"data.sources.{module}"), kind)(name="b", paths=(path,), **more)


def peak_mb() -> float:
    """The most memory that this process held, MB; ru_maxrss would count the parent's before exec as well."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024


def measure(name: str, path: str) -> dict[str, float]:
    """Run in the child: seconds, documents and peak MB of reading everything. WARC pages are read and not extracted."""
    source = source_of(name, path)
    start, documents = time.perf_counter(), 0
    if name == "warc":
        from data.sources.url_block import UrlBlockList

        with Path(path).open("rb") as raw:
            documents = sum(1 for _ in source.pages(raw, UrlBlockList().build()))
    else:
        for shard in source.shards():
            documents += sum(1 for _ in source.documents(shard))
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "documents": documents,
        "peak": peak_mb(),
    }


def warc_over_fastwarc(path: str, rounds: int = 5) -> float:
    """Time of plain FastWARC iteration with bodies / time of ours, medians of interleaved rounds."""
    from fastwarc.warc import ArchiveIterator

    from data.sources.warc import WANTED, iter_records

    ratios = []
    for _ in range(rounds):
        with Path(path).open("rb") as raw:
            start = time.perf_counter()
            for record in ArchiveIterator(raw, record_types=WANTED, parse_http=False):
                record.reader.read()
            plain = time.perf_counter() - start
        with Path(path).open("rb") as raw:
            start = time.perf_counter()
            for _ in iter_records(raw, 32 << 20):
                pass
            ratios.append(plain / (time.perf_counter() - start))
    return statistics.median(ratios)


def token_f1(found: str, gold: str) -> float:
    """F1 of the multisets of lower-case words."""
    first, second = (Counter(re.findall(r"\w+", text.lower())) for text in (found, gold))
    return 2 * sum((first & second).values()) / max(sum(first.values()) + sum(second.values()), 1)


def extraction(real_data: Path) -> dict[str, float]:
    """Mean token F1 on the 40 real pages, ours and plain trafilatura's, and our speed over all cores."""
    import trafilatura

    from data.sources.extract import ExtractConfig, ExtractionPool, Page

    gold = json.loads((real_data / "html" / "ground-truth.json").read_text())
    pages = {key: gzip.decompress((real_data / "html" / f"{key}.html.gz").read_bytes()) for key in gold}
    plain = {key: trafilatura.extract(body.decode("utf-8", "replace")) or "" for key, body in pages.items()}
    opened: ExtractionPool[str] = ExtractionPool(ExtractConfig(), workers=os.cpu_count() or 1)
    with opened as pool:
        list(pool.map((key, Page(body)) for key, body in list(pages.items())[:4]))  # starts the workers
        start = time.perf_counter()
        ours = dict(pool.map((key, Page(body, gold[key]["url"])) for key, body in pages.items()))
        seconds = time.perf_counter() - start
    return {
        "extraction_f1": statistics.mean(token_f1(ours[key].text, gold[key]["articleBody"]) for key in gold),
        "trafilatura_f1": statistics.mean(token_f1(plain[key], gold[key]["articleBody"]) for key in gold),
        "extraction_pages_per_s": len(pages) / seconds,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--mb", type=int, default=1000, help="decompressed MB of each generated input")
    parser.add_argument("--readers", nargs="*", default=READERS, choices=READERS)
    parser.add_argument("--child", nargs=2, metavar=("READER", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(*options.child)))
        return
    results: dict[str, Any] = {}
    print(f"{'reader':<16}{'MB/s':>10}{'peak MB':>10}{'documents':>12}")
    for name in options.readers:
        with tempfile.TemporaryDirectory(prefix="sluice-bench-") as folder:
            path, size = generate(name, Path(folder), options.mb)
            command = [sys.executable, "-m", "tests.bench.sources", "--child", name, path]
            done = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            )
            results[name] = [round(size / 1e6 / done["seconds"], 1), round(done["peak"])]
            print(f"{name:<16}{results[name][0]:>10}{results[name][1]:>10}{done['documents']:>12,}", flush=True)
            if name == "warc":
                results["warc_over_fastwarc"] = round(warc_over_fastwarc(path), 3)
    if folder := os.environ.get("SLUICE_REAL_DATA"):
        results.update({key: round(value, 4) for key, value in extraction(Path(folder)).items()})
    else:
        results["missing"] = ["SLUICE_REAL_DATA: extraction is not measured"]
    for key in ("warc_over_fastwarc", "extraction_f1", "trafilatura_f1", "extraction_pages_per_s"):
        if key in results:
            print(f"{key:<26}{results[key]:>10}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
