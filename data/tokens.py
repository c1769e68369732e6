"""Token shards: DATASET/tokens/{train,heldout}/ with ArrayRecord files and one index, written once and read at random.

Within a split each source is one stream of ids: its documents one after another in a seeded shuffled order, cut into
records of RECORD_TOKENS ids (the last is shorter), so a document of any length is read without reading much else, and
one record read serves many documents. Records go to SOURCE-NNNNN-of-NNNNN.arrayrecord, RECORDS_PER_SHARD to a file.

    a record        ids, little-endian uint16 or uint32; in a source with loss weights, then a float32 for each id
    index.arrow     Arrow file, one row a document in stream order, sources by name: doc_id, source, num_tokens (with
                    BOS and EOS), num_bytes (UTF-8 bytes of the text), record and offset (the source's record that BOS
                    is in, and the place there); where there are preferences, second: the ids of the chosen chat, which
                    stands before the rejected one. Its metadata hold the tokenizer's fingerprint and each shard's size.

Reading one record takes 40 microseconds (8,192 uint16 ids, zstd 1, two-core machine); one document a record could not
be read faster than about 1,300 a second.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from array_record.python.array_record_module import ArrayRecordWriter

from data.chat_tokens import ChatEncoder, chat_encoder
from data.engine import Engine
from data.languages import language_of
from data.tables import atomic_path, read_documents
from data.tokenize import token_dtype, tokenize
from data.tokenizer import Tokenizer, load_tokenizer

VERSION = 2
LIBRARIES = ("array_record", "py3langid", "pyarrow", "sentencepiece", "tokenizers")
CODE_MODULES = (
    "data.clean.language",
    "data.languages",
    "data.tokenizer",
    "data.tokenizer_bytes",
    "data.tokenizer_json",
    "data.tokenizer_sample",
    "data.chat_tokens",
    "data.tokenize",
    "data.tokens",
)

SPLITS = ("train", "heldout")
INDEX_FILE = "index.arrow"
RECORD_TOKENS = 8192  # ids a record
RECORDS_PER_SHARD = 8192  # 67 M ids: 128 or 256 MiB before compression
WRITER_OPTIONS = "group_size:1,zstd:1"  # one record a chunk; level 1 is the cheapest to read

RUN_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("source", pa.string()),
        ("key", pa.uint64()),
        ("doc_id", pa.string()),
        ("num_tokens", pa.int64()),
        ("num_bytes", pa.int64()),
        ("start", pa.int64()),
        ("weighted", pa.bool_()),
        ("second", pa.int64()),
        ("whole", pa.bool_()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class SourceCounts:
    """What one source of one split holds."""

    documents: int
    tokens: int
    num_bytes: int


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
    then the work is in `output`.partial. Bytes depend on documents, tokenizer and seed only, not on the engine, its
    workers, or how documents are spread over shards. split_languages: each language of a source becomes a source of its
    own here, "web:de", with weights and held-out scores of its own.
    """
    work = output.with_name(output.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)
    runs = [work / "runs" / f"{number:05d}" for number in range(len(shards))]
    for run in runs:
        run.mkdir(parents=True)
    encode = _EncodeShard(tokenizer=str(tokenizer), seed=seed, split_languages=split_languages)
    engine.map_shards(encode, [(str(shard), str(run)) for shard, run in zip(shards, runs)], label="tokenize")
    loaded = load_tokenizer(tokenizer)  # once: reading it and its fingerprint take as long as encoding a megabyte
    counts = {split: _write_split(work, runs, split, loaded, engine, seed) for split in SPLITS}
    shutil.rmtree(work / "runs", ignore_errors=True)
    shutil.rmtree(output, ignore_errors=True)
    work.rename(output)
    return counts


@dataclass(frozen=True, kw_only=True)
class _EncodeShard:
    """One document shard -> one run: ids.bin, weights.bin and a table, sorted by (split, source, shuffle key)."""

    tokenizer: str
    seed: int
    split_languages: bool

    def __call__(self, item: tuple[str, str]) -> int:
        shard, run = Path(item[0]), Path(item[1])
        files = sorted(Path(self.tokenizer).iterdir())
        tokenizer, chats = _load_encoders(self.tokenizer, tuple((f.name, f.stat().st_mtime_ns) for f in files))
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


@lru_cache(maxsize=1)
def _load_encoders(folder: str, files: tuple[tuple[str, int], ...]) -> tuple[Tokenizer, ChatEncoder | None]:
    """A tokenizer and its encoder of chats, read once a worker; `files` with their times tell a folder written anew."""
    spec = Path(folder) / "tokenizer.json"
    return load_tokenizer(folder), chat_encoder(spec.read_text(encoding="utf-8")) if spec.is_file() else None


def _write_run(run: Path, rows: list[tuple[str, str, int, str, Any]], dtype: np.dtype) -> None:
    table, start = [], 0
    weighted = any(row[4].loss_weights is not None for row in rows)
    with (run / "ids.bin").open("wb") as ids_file, (run / "weights.bin").open("wb") as weights_file:
        for split, source, key, doc_id, tokens in rows:
            count = len(tokens.ids)
            ids_file.write(tokens.ids.tobytes())
            if weighted:
                weights = np.ones(count, "<f4") if tokens.loss_weights is None else tokens.loss_weights
                weights_file.write(weights.tobytes())
            has_weights = tokens.loss_weights is not None
            settings = (has_weights, tokens.second, tokens.whole)
            table.append((split, source, key, doc_id, count, tokens.num_bytes, start, *settings))
            start += count
    columns = zip(*table) if table else [[] for _ in RUN_SCHEMA]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, RUN_SCHEMA)]
    with pa.OSFile(str(run / "table.arrow"), "wb") as sink, pa.ipc.new_file(sink, RUN_SCHEMA) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=RUN_SCHEMA))


def _write_split(
    work: Path, runs: Sequence[Path], split: str, tokenizer: Tokenizer, engine: Engine, seed: int
) -> dict[str, SourceCounts]:
    """Merge the runs of one split into its shards and index."""
    folder = work / split
    folder.mkdir(parents=True)
    table = _merged(runs, split)
    sources = table.column("source").to_numpy(zero_copy_only=False)
    num_tokens = table.column("num_tokens").to_numpy()
    np.save(work / f"{split}.order.npy", np.stack([table.column(c).to_numpy() for c in ("run", "start", "num_tokens")]))
    dtype = token_dtype(tokenizer.vocab_size)
    tasks: list[tuple[str, int, int, int, bool]] = []
    entries: dict[str, dict[str, Any]] = {}
    counts = {}
    for number, source in enumerate(sorted(set(sources.tolist()))):
        first, last = (int(np.searchsorted(sources, source, side)) for side in ("left", "right"))
        part = table.slice(first, last - first)
        tokens = int(num_tokens[first:last].sum())
        weighted, whole = (bool(pc.any(part.column(name)).as_py()) for name in ("weighted", "whole"))
        paired = _is_paired(source, part.column("second").to_numpy())
        files = _shard_files(source, number, tokens)
        for place, file in enumerate(files):
            tasks.append((str(folder / file), first, last, place * RECORDS_PER_SHARD * RECORD_TOKENS, weighted))
        counts[source] = SourceCounts(
            documents=last - first, tokens=tokens, num_bytes=int(part.column("num_bytes").to_numpy().sum())
        )
        entries[source] = {"first": first, "last": last, "tokens": tokens, "weighted": weighted, "files": files}
        entries[source] |= {"whole": whole, "paired": paired}
    write = _WriteShard(runs=tuple(map(str, runs)), order=str(work / f"{split}.order.npy"), dtype=dtype.str)
    written = dict(
        zip((Path(task[0]).name for task in tasks), engine.map_shards(write, tasks, label=f"tokens/{split}"))
    )
    for entry in entries.values():
        entry["shards"] = [{"file": file, **written[file]} for file in entry.pop("files")]
    header = {
        "format": 1,
        "split": split,
        "seed": seed,
        "tokenizer": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "pad_id": tokenizer.pad_id,
        "dtype": dtype.str,
        "record_tokens": RECORD_TOKENS,
        "documents": table.num_rows,
        "sources": entries,
    }
    _write_index(folder / INDEX_FILE, table, header)
    (work / f"{split}.order.npy").unlink()
    return counts


def _merged(runs: Sequence[Path], split: str) -> pa.Table:
    """The rows of one split of all runs in stream order: by source, shuffle key, id; with the run each is in."""
    tables = []
    for number, run in enumerate(runs):
        with pa.memory_map(str(run / "table.arrow")) as source:
            table = pa.ipc.open_file(source).read_all()
        table = table.filter(pc.equal(table.column("split"), split))
        tables.append(table.append_column("run", pa.array(np.full(table.num_rows, number, np.int64))))
    empty = RUN_SCHEMA.append(pa.field("run", pa.int64())).empty_table()
    table = pa.concat_tables([empty, *tables])
    return table.sort_by([("source", "ascending"), ("key", "ascending"), ("doc_id", "ascending")]).combine_chunks()


def _is_paired(source: str, second: np.ndarray) -> bool:
    """Whether the source's documents are preferences; ValueError where some are and some are not."""
    if second.all() != second.any():
        raise ValueError(
            f"source {source} holds {np.count_nonzero(second):,} preferences among {len(second):,} documents; "
            "give preferences a source of their own"
        )
    return bool(second.any())


def _shard_files(source: str, number: int, tokens: int) -> list[str]:
    name = re.sub(r"[^A-Za-z0-9._-]", "_", source)
    if name != source:
        name = f"{name}.{number}"  # two odd names may read the same
    total = -(-tokens // (RECORDS_PER_SHARD * RECORD_TOKENS))
    return [f"{name}-{place:05d}-of-{total:05d}.arrayrecord" for place in range(total)]


@dataclass(frozen=True, kw_only=True)
class _WriteShard:
    """One output shard: the ids of its range of the source's stream, gathered from the runs."""

    runs: tuple[str, ...]
    order: str
    dtype: str

    def __call__(self, task: tuple[str, int, int, int, bool]) -> dict[str, int]:
        path, first, last, low, weighted = task
        run, start, count = np.load(self.order, mmap_mode="r")[:, first:last]
        ends = np.cumsum(count)
        high = min(low + RECORDS_PER_SHARD * RECORD_TOKENS, int(ends[-1]))
        ids, weights = np.empty(high - low, self.dtype), np.empty(high - low if weighted else 0, "<f4")
        ids_files = [_mapped(Path(folder) / "ids.bin", self.dtype) for folder in self.runs]
        weights_files = [_mapped(Path(folder) / "weights.bin", "<f4") for folder in self.runs] if weighted else []
        for place in range(int(np.searchsorted(ends, low, "right")), len(ends)):
            begin = int(ends[place] - count[place])
            if begin >= high:
                break
            left, right = max(begin, low), min(int(ends[place]), high)
            source = slice(int(start[place]) + left - begin, int(start[place]) + right - begin)
            ids[left - low : right - low] = ids_files[run[place]][source]
            if weighted:
                found = weights_files[run[place]]
                weights[left - low : right - low] = found[source] if found.size else 1.0
        return _write_records(Path(path), ids, weights if weighted else None)


def _write_records(path: Path, ids: np.ndarray, weights: np.ndarray | None) -> dict[str, int]:
    with atomic_path(path) as temporary:
        writer = ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
        for start in range(0, len(ids), RECORD_TOKENS):
            record = ids[start : start + RECORD_TOKENS].tobytes()
            if weights is not None:
                record += weights[start : start + RECORD_TOKENS].tobytes()
            writer.write(record)
        writer.close()
    return {"records": -(-len(ids) // RECORD_TOKENS), "bytes": path.stat().st_size}


def _mapped(path: Path, dtype: str) -> np.ndarray:
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)


def _write_index(path: Path, table: pa.Table, header: dict[str, Any]) -> None:
    num_tokens = table.column("num_tokens").to_numpy()
    begin = np.cumsum(num_tokens) - num_tokens
    for entry in header["sources"].values():
        rows = slice(entry["first"], entry["last"])
        begin[rows] -= begin[rows][:1]
    index = pa.table(
        {
            "doc_id": table.column("doc_id"),
            "source": table.column("source").dictionary_encode(),
            "num_tokens": num_tokens,
            "num_bytes": table.column("num_bytes"),
            "record": begin // RECORD_TOKENS,
            "offset": begin % RECORD_TOKENS,
        }
    )
    if any(entry["paired"] for entry in header["sources"].values()):
        index = index.append_column("second", table.column("second"))
    index = index.combine_chunks()
    text = json.dumps(header, sort_keys=True, ensure_ascii=False)
    index = index.replace_schema_metadata({"sluice": text})
    with (
        atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, index.schema) as writer,
    ):
        writer.write_table(index)
