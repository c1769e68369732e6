"""Document shards -> token shards: each shard is encoded into a run, and the runs are merged (data.token_shards).

A run is one document shard's ids.bin and weights.bin, and a table of its documents (RUN_SCHEMA), sorted by (split,
source, shuffle key).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from data.chat_tokens import ChatEncoder, chat_encoder
from data.engine import Engine
from data.languages import language_of
from data.tables import atomic_path, read_documents, write_json
from data.token_shards import RUN_SCHEMA, SPLITS, SourceCounts, write_split
from data.tokenize import Tokens, token_dtype, tokenize
from data.tokenizer import Tokenizer, load_tokenizer

VERSION = 2
LIBRARIES = ("array_record", "py3langid", "pyarrow", "regex", "sentencepiece", "tokenizers")
CODE_MODULES = (
    "data.clean.language",
    "data.languages",
    "data.tokenizer",
    "data.tokenizer_bytes",
    "data.tokenizer_json",
    "data.tokenizer_sample",
    "data.tokenizer_words",
    "data.chat_tokens",
    "data.tokenize",
    "data.token_shards",
    "data.tokens",
)

RUN_TABLE = "table.arrow"
INPUTS = "inputs.json"  # in the folder of work: what the runs there were made from
WRITE_BUFFER = 1 << 20  # bytes: documents are of some kilobytes
SORTED_BY = ("split", "source", "key", "doc_id")  # the rows of a run


def tokenize_stage(
    shards: Sequence[Path],
    tokenizer: Path,
    output: Path,
    engine: Engine,
    *,
    seed: int = 0,
    split_languages: bool = False,
) -> dict[str, dict[str, SourceCounts]]:
    """Encode document shards and write `output`/{train,heldout}; the counts by split and source.

    Documents go to the split that meta["split"] names, to "train" without one. `output` appears at once, whole: until
    then the work is in `output`.partial, and runs that a killed run left whole there are used. Bytes depend on
    documents, tokenizer and seed only, not on the engine, its workers, or how documents are spread over shards.
    split_languages: each language of a source becomes a source of its own here, "web:de", with weights and held-out
    scores of its own.
    """
    work = output.with_name(output.name + ".partial")
    loaded, _ = _encoders(tokenizer)
    _begin(work, shards, [loaded.fingerprint, seed, split_languages, VERSION])
    runs = [work / "runs" / f"{number:05d}" for number in range(len(shards))]
    encode = _EncodeShard(tokenizer=str(tokenizer), seed=seed, split_languages=split_languages)
    engine.map_shards(encode, list(zip(shards, runs)), label="tokenize", documents=int, twice=True)
    counts = {split: write_split(work, runs, split, loaded, engine, seed) for split in SPLITS}
    (work / INPUTS).unlink()
    shutil.rmtree(work / "runs", ignore_errors=True)
    shutil.rmtree(output, ignore_errors=True)
    work.rename(output)
    return counts


def _begin(work: Path, shards: Sequence[Path], settings: list[Any]) -> None:
    """Empty the folder of work, but for runs that were made from the same inputs."""
    files = [[str(shard), shard.stat().st_size, shard.stat().st_mtime_ns] for shard in shards]
    inputs = {"shards": files, "settings": settings}
    try:
        same = json.loads((work / INPUTS).read_text(encoding="utf-8")) == inputs
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(work, ignore_errors=True)
        (work / "runs").mkdir(parents=True)
        write_json(work / INPUTS, inputs)
    for split in SPLITS:
        shutil.rmtree(work / split, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class _EncodeShard:
    """One document shard -> one run: ids.bin, weights.bin and a table, sorted by (split, source, shuffle key)."""

    tokenizer: str
    seed: int
    split_languages: bool

    def __call__(self, item: tuple[Path, Path]) -> int:
        shard, run = item
        if (run / RUN_TABLE).exists():
            with pa.memory_map(str(run / RUN_TABLE)) as source:
                return pa.ipc.open_file(source).read_all().num_rows
        run.mkdir(parents=True, exist_ok=True)
        tokenizer, chats = _encoders(Path(self.tokenizer))
        rows = []
        for document, tokens in tokenize(read_documents(shard), tokenizer, chats):
            split = document.meta.get("split", "train")
            if split not in SPLITS:
                raise ValueError(f"{shard}: document {document.id} has split {split!r}; expected {' or '.join(SPLITS)}")
            key = xxhash.xxh64_intdigest(document.id.encode(), self.seed)
            source = f"{document.source}:{language_of(document)}" if self.split_languages else document.source
            rows.append((split, source, key, document.id, tokens))
        rows.sort(key=lambda row: row[:4])
        _write_run(run, rows, token_dtype(tokenizer.vocab_size))
        return len(rows)


def _encoders(folder: Path) -> tuple[Tokenizer, Callable[[], ChatEncoder] | None]:
    """A tokenizer and what makes its encoder of chats, once a process: each takes as long as encoding a megabyte."""
    return _read_encoders(folder, tuple((f.name, f.stat().st_mtime_ns) for f in sorted(folder.iterdir())))


@lru_cache(maxsize=1)
def _read_encoders(
    folder: Path, files: tuple[tuple[str, int], ...]
) -> tuple[Tokenizer, Callable[[], ChatEncoder] | None]:
    """`files` with their times tell a folder written anew."""
    spec = folder / "tokenizer.json"
    make = cache(lambda: chat_encoder(spec.read_text(encoding="utf-8"))) if spec.is_file() else None
    return load_tokenizer(folder), make


def _write_run(run: Path, rows: list[tuple[str, str, int, str, Tokens]], dtype: np.dtype) -> None:
    tokens = [row[4] for row in rows]
    num_tokens = np.array([len(each.ids) for each in tokens], np.int64)
    weighted = [each.loss_weights is not None for each in tokens]
    with (
        atomic_path(run / "ids.bin") as ids_path,
        atomic_path(run / "weights.bin") as weights_path,
        ids_path.open("wb", WRITE_BUFFER) as ids_file,
        weights_path.open("wb", WRITE_BUFFER) as weights_file,
    ):
        ids_file.writelines(each.ids.data for each in tokens)
        if any(weighted):
            ones = np.ones(num_tokens.max(), "<f4")
            weights = (ones[: len(each.ids)] if each.loss_weights is None else each.loss_weights for each in tokens)
            weights_file.writelines(each.data for each in weights)
    columns: dict[str, Any] = {name: [row[place] for row in rows] for place, name in enumerate(SORTED_BY)}
    columns |= {
        "num_tokens": num_tokens,
        "num_bytes": [each.num_bytes for each in tokens],
        "start": np.cumsum(num_tokens) - num_tokens,
        "weighted": weighted,
        "second": [each.second for each in tokens],
        "whole": [each.whole for each in tokens],
    }
    with (
        atomic_path(run / RUN_TABLE) as path,  # last: with it the run is whole
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, RUN_SCHEMA) as writer,
    ):
        writer.write_table(pa.table(columns, schema=RUN_SCHEMA))
