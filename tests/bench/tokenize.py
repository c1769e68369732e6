"""Encoding MB/s through our whole path to ArrayRecord beside the libraries: `python -m tests.bench.tokenize [--mb N]`.

The text is the standard library's files and docstrings. For each kind of model (SentencePiece BPE and unigram, and
byte-level BPE), on one process and on two:

    ours           tokenize_stage: Parquet documents -> ids -> shuffled ArrayRecord shards and index
    sentencepiece  SentencePieceProcessor.encode of the same texts in memory, the same model, as many threads
    tokenizers     Tokenizer.encode_batch_fast of the same texts in memory, the same model, as many threads

Turns are interleaved, each first in turn; figures are medians of MB of UTF-8 text a second of wall time.
`over_fastest_raw` is our rate over that of the faster library on one process for the default kind (BPE); the libraries
only encode, ours also reads, shuffles and writes. Every run of `tokenizers` starts without its cache of words from the
run before.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import sentencepiece

from data.engine import LocalPool
from data.loader import LoaderConfig, open_loader
from data.tables import read_documents, write_documents
from data.tokenizer_config import TokenizerConfig
from data.tokenizer_train import train_tokenizer
from data.tokens import tokenize_stage
from tests.bench.loader import MIX, make_dataset, rate
from tests.bench.python_text import stdlib_text

ROUNDS = 9
KINDS = ("bpe", "unigram", "byte_bpe")
HF = """
import json, sys, time
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
texts = json.load(open(sys.argv[2]))
begin = time.perf_counter()
tokenizer.encode_batch_fast(texts, add_special_tokens=False)
print(time.perf_counter() - begin)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=24, help="text, MB")
    parser.add_argument("--vocab-size", type=int, default=8192)
    options = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = "1"  # of each of our processes: read when `tokenizers` first encodes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        documents = stdlib_text(int(options.mb * 1e6))
        shards = []
        for number in range(4):
            shards.append(folder / f"{number}.parquet")
            write_documents(shards[-1], documents[number::4])
        megabytes = sum(len(document.text.encode()) for document in documents) / 1e6
        rates = {kind: measure(folder, kind, shards, megabytes, options.vocab_size) for kind in KINDS}
        loader_rate = mixed_loader_rate(folder / "mixed")
    print(f"{megabytes:.1f} MB of text, {len(documents):,} documents, {options.vocab_size} pieces; MB/s (spread)")
    print(f"{'':24}{'ours':>20}{'sentencepiece':>20}{'tokenizers':>20}{'over fastest':>14}")
    for kind, by_threads in rates.items():
        for threads, found in by_threads.items():
            cells = [f"{statistics.median(r):.2f} ({min(r):.2f}-{max(r):.2f})" if r else "-" for r in found.values()]
            ratio = f"{over_fastest(found):.2f}"
            print(f"{kind + f', {threads} process(es)':24}" + "".join(f"{cell:>20}" for cell in cells) + f"{ratio:>14}")
    result = {
        "over_fastest_raw": round(over_fastest(rates["bpe"][1]), 3),
        "unigram_over_fastest_raw": round(over_fastest(rates["unigram"][1]), 3),
        "byte_bpe_over_fastest_raw": round(over_fastest(rates["byte_bpe"][1]), 3),
        "two_processes_over_fastest_raw": {kind: round(over_fastest(r[2]), 3) for kind, r in rates.items()},
        "mb_per_s": {kind: round(statistics.median(r[1]["ours"]), 2) for kind, r in rates.items()},
        "loader_tokens_per_s": round(loader_rate),
    }
    print(json.dumps(result))


def measure(
    folder: Path, kind: str, shards: list[Path], megabytes: float, vocab_size: int
) -> dict[int, dict[str, list[float]]]:
    """MB/s by number of processes and by who, one value a round."""
    model = folder / kind
    config = TokenizerConfig(kind=kind, vocab_size=vocab_size, sample_bytes=1_500_000)  # type: ignore[arg-type]
    train_tokenizer(config, shards, model)
    texts = [document.text for shard in shards for document in read_documents(shard)]
    (folder / "texts.json").write_text(json.dumps(texts))
    found: dict[int, dict[str, list[float]]] = {}
    for threads in (1, 2):
        found[threads] = {"ours": [], "sentencepiece": [], "tokenizers": []}
        with LocalPool(workers=threads).session() as engine:
            tokenize_stage(shards[:1], model, folder / "warm", engine)  # workers start
            for turn in range(ROUNDS):
                # another folder each time: a worker remembers the words of a tokenizer that it has read
                fresh = Path(shutil.copytree(model, folder / f"{kind}-{threads}-{turn}"))
                takes: dict[str, Callable[[], float]] = {
                    "ours": lambda e=engine, m=fresh: timed(lambda: tokenize_stage(shards, m, folder / "tokens", e)),  # type: ignore[misc]
                    "tokenizers": lambda n=threads: huggingface(folder, model, n),  # type: ignore[misc]
                }
                if (model / "tokenizer.model").exists():
                    processor = sentencepiece.SentencePieceProcessor(model_file=str(model / "tokenizer.model"))
                    takes["sentencepiece"] = lambda p=processor, n=threads: timed(
                        lambda: p.encode(texts, num_threads=n)
                    )  # type: ignore[misc]
                names = sorted(takes)
                for place in range(len(names)):  # each is first in turn: what ran just before is felt
                    who = names[(turn + place) % len(names)]
                    found[threads][who].append(megabytes / takes[who]())
    return found


def timed(call: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def huggingface(folder: Path, model: Path, threads: int) -> float:
    """Seconds that `tokenizers` takes to encode the texts, in a fresh process with so many threads."""
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
    command = [sys.executable, "-c", HF, str(model / "tokenizer.json"), str(folder / "texts.json")]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def over_fastest(found: dict[str, list[float]]) -> float:
    """Our rate over the faster library's: the median over rounds."""
    pairs = zip(found["ours"], zip(*(rates for who, rates in found.items() if who != "ours" and rates)))
    return statistics.median(ours / max(theirs) for ours, theirs in pairs)


def mixed_loader_rate(folder: Path) -> float:
    """Tokens a processor second of the loader on a mixture of five sources."""
    dataset = make_dataset(folder, max_bytes=6_000_000, mixed=True)
    loader = open_loader(dataset, LoaderConfig(seq_len=256, global_batch_size=32, prefetch=0, weights=MIX))
    return statistics.median(rate(loader, 100 * turn, 0.5)[0] for turn in range(5))


if __name__ == "__main__":
    main()
