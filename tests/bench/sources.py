"""Speed and peak memory of every reader, and the quality of extraction: `python -m tests.bench.sources [--mb 1000]`.

Each reader reads one generated file (or folder) of its real format in a process of its own on one core; MB are bytes on
disk, decompressed where the format is compressed. Prints a table and, as the last line, one JSON object:
{reader: [mb_per_s, peak_mb], "warc_over_fastwarc", "extraction_f1", "trafilatura_f1", "extraction_pages_per_s",
"extraction_speedup_N_cores"}; the last four need SLUICE_REAL_DATA.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from data.document import Document, Dropped
from tests.bench.source_inputs import generate

READERS = ("jsonl", "jsonl_zst", "parquet", "csv", "text", "array_record", "warc", "wet", "mediawiki", "stack_exchange",
           "reddit", "twitter", "mbox", "pubmed", "oai", "jats", "arxiv", "gutenberg", "epub", "notebook", "discourse",
           "forum_pages", "wat", "git", "tfds", "html")  # fmt: skip
SHARES = {"html": 10}  # a reader that takes an hour: unless it is named, this part of the size, and half of that

MEANT = {"epub": ("path_climbs_out", "corrupt_record")}  # drops that the generated input asks for


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
        "discourse": "forums.DiscourseSource", "forum_pages": "forum_pages.ForumPageSource",
        "wat": "warc.WarcSource", "html": "html_files.HtmlFolder",
        "git": "git_repository.GitSource", "tfds": "array_records.TfdsSource",
    }  # fmt: skip
    module, _, kind = kinds[name].partition(".")
    more: dict[str, Any] = {"repositories": (path,)} if name == "git" else {"paths": (path,)}
    if name in ("array_record", "tfds"):
        more = {"path": path} if name == "tfds" else {**more, "record": "text"}
    return getattr(import_module(f"data.sources.{module}"), kind)(name="b", **more)


def peak_mb() -> float:
    """The most memory that this process held, MB, and its largest child (ru_maxrss counts a parent's before exec)."""
    status = Path("/proc/self/status").read_text()
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return (int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) + children) / 1024


def measure(name: str, path: str) -> dict[str, float]:
    """Run in the child: seconds, documents, drops that none meant, peak MB. WARC pages are read, not extracted."""
    source = source_of(name, path)
    start, documents, dropped = time.perf_counter(), 0, 0
    if name == "warc":
        from data.sources.url_block import UrlBlockList

        with Path(path).open("rb") as raw:
            documents = sum(1 for _ in source.pages(raw, UrlBlockList().build()))
    else:
        for shard in source.shards():
            for item in source.documents(shard):
                documents += isinstance(item, Document)
                dropped += isinstance(item, Dropped) and item.drop.reason not in MEANT.get(name, ())
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "documents": documents,
        "dropped": dropped,
        "peak": peak_mb(),
    }


def warc_over_fastwarc(path: str, rounds: int = 5) -> float:
    """Time of plain FastWARC iteration with bodies / time of ours, medians of interleaved rounds."""
    from fastwarc.warc import ArchiveIterator

    from data.sources.warc_records import WANTED, iter_records

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
    cores, rates = len(os.sched_getaffinity(0)), {}
    for workers in sorted({1, cores}):
        opened: ExtractionPool[str] = ExtractionPool(ExtractConfig(), workers=workers)
        with opened as pool:
            list(pool.map((key, Page(body)) for key, body in list(pages.items())[: 4 * workers]))  # starts the workers
            start = time.perf_counter()
            ours = list(pool.map((key, Page(body, gold[key]["url"])) for key, body in [*pages.items()] * 3))
            rates[workers] = len(ours) / (time.perf_counter() - start)
        assert [key for key, _ in ours] == [*pages] * 3, "order is kept"
    texts = {key: found.text for key, found in ours}
    return {
        "extraction_f1": statistics.mean(token_f1(texts[key], gold[key]["articleBody"]) for key in gold),
        "trafilatura_f1": statistics.mean(token_f1(plain[key], gold[key]["articleBody"]) for key in gold),
        "extraction_pages_per_s": rates[cores],
        f"extraction_speedup_{cores}_cores": rates[cores] / rates[1],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--mb", type=int, default=1000, help="decompressed MB of each generated input")
    parser.add_argument("--readers", nargs="*", choices=READERS, help="only these, each on the whole size")
    parser.add_argument("--child", nargs=2, metavar=("READER", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(*options.child)))
        return
    results: dict[str, Any] = {}
    print(f"{'reader':<16}{'MB':>8}{'MB/s':>10}{'peak MB':>10}{'documents':>12}")
    for name in options.readers or READERS:
        share = 1 if options.readers else SHARES.get(name, 1)
        for part in (options.mb // share // 2, options.mb // share) if share > 1 else (options.mb,):
            with tempfile.TemporaryDirectory(prefix="sluice-bench-") as folder:
                path, size = generate(name, Path(folder), part)
                done = run_child(name, path)
                results[name] = [round(size / 1e6 / done["seconds"], 1), round(done["peak"])]
                speed, peak = results[name]
                assert not done["dropped"], f"{name} dropped {done['dropped']:,} records of a generated input"
                print(f"{name:<16}{size / 1e6:>8,.0f}{speed:>10}{peak:>10}{done['documents']:>12,}", flush=True)
                if name == "warc":
                    results["warc_over_fastwarc"] = round(warc_over_fastwarc(path), 3)
    if real_data := os.environ.get("SLUICE_REAL_DATA"):
        results.update({key: round(value, 4) for key, value in extraction(Path(real_data)).items()})
    else:
        results["missing"] = ["SLUICE_REAL_DATA: extraction is not measured"]
    for key, value in results.items():
        if isinstance(value, float):
            print(f"{key:<30}{value:>10}")
    print(json.dumps(results))


def run_child(name: str, path: str) -> dict[str, float]:
    """`measure` in a process of its own, so that its peak is its own."""
    command = [sys.executable, "-m", "tests.bench.sources", "--child", name, path]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
