"""A program for test_few_files: token shards written and batches made by a process that may hold few files open.

    python -m tests.data.few_files DATASET LIMIT

Writes DATASET/tokens anew and prints a hash of the first batches. LIMIT 0 leaves the limit as it is.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import xxhash

from data import token_shards
from data.engine import LocalPool
from data.loader import LoaderConfig, open_loader
from data.tokens import tokenize_stage

STEPS = 40


def main(dataset: Path, limit: int) -> None:
    """Small records and shards, so that little text makes many files."""
    token_shards.RECORD_TOKENS, token_shards.RECORDS_PER_SHARD = 100, 3
    shards = sorted((dataset / "documents").glob("*.parquet"))
    config = LoaderConfig(seq_len=64, global_batch_size=8, cache_bytes=0)
    if limit:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    tokenize_stage(shards, dataset / "tokenizer", dataset / "tokens", LocalPool(workers=1))
    loader = open_loader(dataset, config)
    digest = xxhash.xxh3_64()
    for step in range(STEPS):
        for array in loader.batch(step).values():
            digest.update(array.tobytes())
    print(digest.hexdigest())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
