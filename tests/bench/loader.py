"""Loader tokens a second on one core, and packing fill: `python -m tests.bench.loader [--seconds S]`.

A dataset of real text (the standard library's files and docstrings, a 2,048-piece BPE, two sources; the docstrings
also dealt out to four for a mixture of five) is built in a temporary folder; then each setting is read in turns, rounds
interleaved, pinned to one core, through `Loader.iterate` without a prefetch thread. Tokens are those with loss (padding
is not counted); a second is a second of this process's processor time. `misses` reads the same with a cache of one
record, so every document is decoded again: the worst that a large dataset can do.

A step cannot consume more than this machine's matrix-multiply peak / (6 * parameters) tokens a second: printed beside.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from data.engine import LocalPool
from data.loader import Loader, LoaderConfig, open_loader
from data.tables import write_documents
from data.tokenizer_config import TokenizerConfig
from data.tokenizer_train import train_tokenizer
from data.tokens import tokenize_stage
from tests.bench.python_text import stdlib_text

ROUNDS = 5
BAR_TOKENS_PER_S, BAR_FILL = 1.5e6, 0.96  # issue: at least so many on one core, at such a fill
MIX = (("code", 0.4), ("prose", 0.3), ("prose1", 0.15), ("prose2", 0.1), ("prose3", 0.05))


def make_dataset(folder: Path, *, max_bytes: int, mixed: bool) -> Path:
    """Tokenizer and token shards of the standard library's text; mixed: prose dealt out to four sources."""
    documents = [
        replace(document, source=f"prose{place % 4 or ''}") if mixed and document.source == "prose" else document
        for place, document in enumerate(stdlib_text(max_bytes))
    ]
    folder.mkdir(parents=True)
    write_documents(folder / "documents.parquet", documents)
    config = TokenizerConfig(vocab_size=2048, sample_bytes=2_000_000)
    train_tokenizer(config, [folder / "documents.parquet"], folder / "tokenizer")
    tokenize_stage([folder / "documents.parquet"], folder / "tokenizer", folder / "tokens", LocalPool(workers=1))
    return folder


def rate(loader: Loader, start: int, seconds: float) -> tuple[float, int]:
    """Tokens with loss a processor second over about `seconds`, and the next step."""
    tokens, begin, step = 0.0, time.process_time(), start
    batches = loader.iterate(start)
    while time.process_time() - begin < seconds:
        tokens += sum(float(batch["loss_weights"].sum()) for batch in islice(batches, 8))
        step += 8
    spent = time.process_time() - begin
    batches.close()
    return tokens / spent, step


def matmul_peak() -> float:
    """Multiply-adds of a float32 matrix product on all cores, FLOP/s, the best of five."""
    left = np.ones((2048, 2048), np.float32)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        left @ left
        times.append(time.perf_counter() - begin)
    return 2 * 2048**3 / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="processor seconds of a turn")
    parser.add_argument("--mb", type=float, default=12, help="text in the dataset, MB")
    options = parser.parse_args()
    peak = matmul_peak()
    with tempfile.TemporaryDirectory() as folder:
        two = make_dataset(Path(folder) / "two", max_bytes=int(options.mb * 1e6), mixed=False)
        five = make_dataset(Path(folder) / "five", max_bytes=int(options.mb * 1e6), mixed=True)
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        short = LoaderConfig(seq_len=256, global_batch_size=32, prefetch=0)
        long = replace(short, seq_len=2048, global_batch_size=8)
        concat = replace(long, packing="concat_then_split")
        settings = {
            "first_fit 256": (two, short),
            "first_fit 2048": (two, long),
            "concat_then_split 2048": (two, concat),
            "first_fit 256, 5 sources": (five, replace(short, weights=MIX)),
            "first_fit 256, misses": (two, replace(short, cache_bytes=0)),
            "first_fit 2048, misses": (two, replace(long, cache_bytes=0)),
        }
        planning = {}
        loaders = {}
        for name, (dataset, config) in settings.items():
            begin = time.process_time()
            loaders[name] = open_loader(dataset, config)
            planning[name] = time.process_time() - begin
        rates: dict[str, list[float]] = {name: [] for name in settings}
        steps = dict.fromkeys(settings, 0)
        for _ in range(ROUNDS):
            for name, loader in loaders.items():
                measured, steps[name] = rate(loader, steps[name], options.seconds)
                rates[name].append(measured)
    print(f"{'setting':28}{'M tokens/s':>12}{'spread':>16}{'fill':>8}{'open s':>8}")
    for name, found in rates.items():
        low, middle, high = min(found), statistics.median(found), max(found)
        fill = loaders[name].stats.fill
        spread = f"{low / 1e6:.2f}-{high / 1e6:.2f}"
        print(f"{name:28}{middle / 1e6:12.2f}{spread:>16}{fill:8.4f}{planning[name]:8.2f}")
    for parameters in (1.07e6, 30e6):
        bound = peak / (6 * parameters)
        print(
            f"a step of {parameters / 1e6:.3g} M parameters: at most {bound:,.0f} tokens/s ({peak / 1e9:.0f} GFLOP/s)"
        )
    worst = min(statistics.median(rates[name]) for name in ("first_fit 256", "first_fit 2048"))
    fill = min(loaders[name].stats.fill for name in ("first_fit 256", "first_fit 2048"))
    result = {
        "tokens_per_s": round(worst),
        "packing_fill": round(fill, 4),
        "mixture_tokens_per_s": round(statistics.median(rates["first_fit 256, 5 sources"])),
        "bar_met": worst >= BAR_TOKENS_PER_S and fill >= BAR_FILL,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
