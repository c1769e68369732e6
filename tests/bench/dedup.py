"""How fast near dedup is, side by side with datatrove, datasketch and rensa: `python -m tests.bench.dedup [--million]`.

Signatures: text of about 1 kB to 128 MinHash values, shingling in words included, one core. All take turns on the same
slices of documents and count processor time; figures are medians over the slices. datatrove (0.10 with spacy) and rensa
run in environments of their own, named by SLUICE_DATATROVE_PYTHON and SLUICE_RENSA_PYTHON.
Stage: 20,000 documents with planted near-duplicates, Parquet to Parquet in one process, with recall beside theory.
--million: one million documents made from real sentences, a quarter of them edited copies, on two workers.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from data.dedup.bands import band_keys, candidate_probability
from data.dedup.near import NearDedup
from data.dedup.shingles import hash_shingles, unique_sorted
from data.dedup.verdicts import Alarms
from data.document import Document
from data.engine import LocalPool
from data.tables import read_dropped, write_documents
from tests.bench.clean import english_documents
from tests.data.dedup.corpora import planted_copy

SLICE = 256  # documents a turn
ROUNDS = 12
CHARS = 1000  # of a made document, about
SIMILARITIES = (0.5, 0.6, 0.7, 0.8, 0.9)
PEER = """
import json, re, sys, tempfile, time
name = sys.argv[1]
def shingles(text, join):
    words = re.findall(r"\\w+", text.lower())
    return [join(words[i:i + 5]) for i in range(max(len(words) - 4, 1))]
if name == "datatrove":
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.logging import logger
    logger.remove()
    config = MinhashConfig(n_grams=5, num_buckets=16, hashes_per_bucket=8)
    def sign(texts):
        step = MinhashDedupSignature(output_folder=tempfile.mkdtemp(), config=config)
        step.run([Document(text=text, id=str(i)) for i, text in enumerate(texts)], 0, 1)
if name == "datasketch":
    from datasketch import MinHash
    def sign(texts):
        for text in texts:
            MinHash(num_perm=128).update_batch(shingles(text, lambda words: " ".join(words).encode()))
if name == "rensa":
    from rensa import RMinHash
    def sign(texts):
        RMinHash.digests_from_token_sets([shingles(text, " ".join) for text in texts], 128, 1)
for line in sys.stdin:
    texts = json.loads(line)
    start = time.process_time()
    sign(texts)
    print(json.dumps(time.process_time() - start), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=int, default=20_000, help="documents of the stage measurement")
    parser.add_argument("--million", action="store_true", help="also one million documents on two workers")
    arguments = parser.parse_args()
    texts = english_documents(SLICE * ROUNDS)
    print(f"signatures: {len(texts)} documents, {np.mean([len(text) for text in texts]):.0f} characters on average")
    result = signature_speeds([texts[i : i + SLICE] for i in range(0, len(texts) - SLICE + 1, SLICE)])
    sentences = split_sentences(texts)
    with tempfile.TemporaryDirectory() as folder:
        result["docs_per_s"] = stage_speed(Path(folder), sentences, arguments.docs)
        result |= {"million_docs_minutes": None, "peak_gb": None}
        if arguments.million:
            result |= million(Path(folder), sentences)
    print(json.dumps(result))


def signature_speeds(slices: Sequence[Sequence[str]]) -> dict[str, object]:
    """Print documents a second of each; the ratios."""
    interpreters = {
        "datatrove": os.environ.get("SLUICE_DATATROVE_PYTHON"),
        "datasketch": sys.executable,
        "rensa": os.environ.get("SLUICE_RENSA_PYTHON"),
    }
    peers = {name: start_peer(python, name) for name, python in interpreters.items() if python}
    seconds: dict[str, list[float]] = {"ours": [], **{name: [] for name in peers}}
    sign(slices[0])
    for peer in peers.values():
        ask(peer, slices[0])  # loads what it needs
    for part in slices:
        start = time.process_time()
        sign(part)
        seconds["ours"].append(time.process_time() - start)
        for name, peer in peers.items():
            seconds[name].append(ask(peer, part))
    result: dict[str, object] = {}
    print(f"{'ours':<12}{SLICE / statistics.median(seconds['ours']):>10,.0f} documents/s")
    result["signatures_per_s"] = round(SLICE / statistics.median(seconds["ours"]))
    for name in interpreters:
        if name not in peers:
            result[f"over_{name}"] = None
            print(f"{name} is missing: set SLUICE_{name.upper()}_PYTHON to an interpreter that has it")
            continue
        peers[name].communicate()
        ratio = statistics.median(theirs / ours for theirs, ours in zip(seconds[name], seconds["ours"]))
        result[f"over_{name}"] = round(ratio, 2)
        print(f"{name:<12}{SLICE / statistics.median(seconds[name]):>10,.0f} documents/s   ours is {ratio:.1f} times")
    return result


def sign(texts: Sequence[str]) -> None:
    """What the scan of `NearDedup` does with a batch: shingle sets, signatures, band keys."""
    stage = NearDedup()
    found = unique_sorted(hash_shingles(texts, stage.shingles))
    band_keys(stage.minhash.signatures(found), *stage.bands())


def start_peer(python: str, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen([python, "-c", PEER, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(peer: subprocess.Popen[str], texts: Sequence[str]) -> float:
    assert peer.stdin is not None and peer.stdout is not None
    peer.stdin.write(json.dumps(list(texts)) + "\n")
    peer.stdin.flush()
    return float(json.loads(peer.stdout.readline()))


def split_sentences(texts: Sequence[str]) -> list[str]:
    """The distinct sentences of at least six words."""
    parts = (" ".join(part.split()) for text in texts for part in re.split(r"(?<=[.!?])\s+|\n\n", text))
    return list(dict.fromkeys(part for part in parts if len(part.split()) >= 6))


def make_documents(sentences: Sequence[str], first: int, count: int, copies: float) -> list[Document]:
    """Documents of sentences in random order; a share `copies` of them is followed by an edited copy of itself.

    The copy of document N is N+copy, with the planted similarity in its meta.
    """
    draw = random.Random(f"documents {first}")
    documents: list[Document] = []
    while len(documents) < count:
        size, parts = 0, []
        while size < CHARS:
            parts.append(draw.choice(sentences))
            size += len(parts[-1])
        text, name = " ".join(parts), f"{first + len(documents):08d}"
        documents.append(Document(id=name, text=text, source="made"))
        if draw.random() < copies and len(documents) < count:
            similarity = draw.choice(SIMILARITIES)
            copy = " ".join(planted_copy(text.split(), similarity, draw))
            documents.append(Document(id=f"{name}+copy", text=copy, source="made", meta={"planted": similarity}))
    return documents


def write_shard(folder: Path, count: int, number: int) -> str:
    sentences = json.loads((folder / "sentences.json").read_text(encoding="utf-8"))
    path = folder / f"{number:05d}.parquet"
    write_documents(path, make_documents(sentences, number * count, count, copies=1 / 3))
    return str(path)


def stage_speed(folder: Path, sentences: Sequence[str], count: int) -> int:
    """Print the speed of the whole stage in one process, and recall beside theory; documents a second."""
    documents = make_documents(sentences, 0, count, copies=0.5)
    (folder / "in").mkdir()
    path = folder / "in" / "00000.parquet"
    write_documents(path, documents)
    stage = NearDedup(threshold=0.5, alarms=Alarms(max_cluster=None, max_source_loss=1.0))
    NearDedup().run([path], folder / "warm", LocalPool(workers=1))
    start = time.process_time()
    counts = NearDedup().run([path], folder / "out", LocalPool(workers=1))
    speed = round(count / (time.process_time() - start))
    print(f"\nstage: {count:,} documents, Parquet to Parquet, one process: {speed:,} documents/s, {counts}")
    stage.run([path], folder / "recall", LocalPool(workers=1))
    gone = {row.document.id: row.drop for row in read_dropped(folder / "recall" / "dropped" / "00000.parquet")}
    print(f"recall of planted pairs, threshold 0.5, bands x rows {stage.bands()}:   similarity  pairs  recall  theory")
    by_id = {document.id: document for document in documents}
    for planted in SIMILARITIES:
        pairs = [d for d in documents if d.meta.get("planted") == planted]
        true = [exact_similarity(by_id[d.id[:8]].text, d.text) for d in pairs]
        pairs = [(d, s) for d, s in zip(pairs, true) if s >= 0.5]
        found = np.mean([d.id in gone or d.id[:8] in gone for d, _ in pairs])
        theory = candidate_probability(np.array([s for _, s in pairs]), *stage.bands()).mean()
        print(f"{'':<68}{planted:>8}{len(pairs):>8}{found:>8.3f}{theory:>8.3f}")
    return speed


def exact_similarity(one: str, other: str) -> float:
    found = unique_sorted(hash_shingles([one, other], NearDedup().shingles))
    first, second = (set(found.values[a:b].tolist()) for a, b in zip(found.starts, found.starts[1:]))
    return len(first & second) / len(first | second)


def million(folder: Path, sentences: Sequence[str]) -> dict[str, object]:
    """One million documents from text to verdicts on two workers: minutes and peak memory of all processes."""
    (folder / "million").mkdir()
    engine = LocalPool(workers=2)
    (folder / "million" / "sentences.json").write_text(json.dumps(sentences), encoding="utf-8")
    make = partial(write_shard, folder / "million", 50_000)
    paths = [Path(path) for path in engine.map_shards(make, list(range(20)), label="make documents")]
    with PeakMemory() as memory:
        start = time.monotonic()
        with engine.session() as workers:
            counts = NearDedup(memory_bytes=1 << 29).run(paths, folder / "million-out", workers)
        minutes = (time.monotonic() - start) / 60
    print(f"\none million documents on two workers: {minutes:.2f} minutes, peak {memory.gigabytes:.2f} GB, {counts}")
    return {"million_docs_minutes": round(minutes, 2), "peak_gb": round(memory.gigabytes, 2)}


class PeakMemory:
    """The largest proportional set size of this process and its children together, looked at four times a second."""

    def __init__(self) -> None:
        self.gigabytes = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.25):
            self.gigabytes = max(self.gigabytes, sum(map(_memory_bytes, _family(os.getpid()))) / 1e9)


def _family(process: int) -> list[int]:
    found = [process]
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        for child in task.read_text().split():
            found += _family(int(child))
    return found


def _memory_bytes(process: int) -> int:
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:  # it has just ended
        return 0
    match = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


if __name__ == "__main__":
    from tests.bench import dedup  # under its importable name: workers must find the function that makes documents

    dedup.main()
