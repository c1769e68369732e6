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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from array_record.python.array_record_module import ArrayRecordWriter

from data.engine import Engine
from data.tables import atomic_path
from data.tokenize import token_dtype
from data.tokenizer import Tokenizer

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


def write_split(
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
        run, start, count = np.asarray(np.load(self.order, mmap_mode="r")[:, first:last])
        ends = np.cumsum(count)
        begins = ends - count
        high = min(low + RECORDS_PER_SHARD * RECORD_TOKENS, int(ends[-1]))
        ids, weights = np.empty(high - low, self.dtype), np.empty(high - low if weighted else 0, "<f4")
        places = np.arange(np.searchsorted(ends, low, "right"), np.searchsorted(begins, high, "left"))
        for number in np.unique(run[places]).tolist():  # run by run: a build of many runs has one open at a time
            run_ids = _mapped(Path(self.runs[number]) / "ids.bin", self.dtype)
            run_weights = _mapped(Path(self.runs[number]) / "weights.bin", "<f4") if weighted else np.empty(0, "<f4")
            its = places[run[places] == number]
            left, right = np.maximum(begins[its], low), np.minimum(ends[its], high)
            source = start[its] + left - begins[its]
            for to, end, at in zip((left - low).tolist(), (right - low).tolist(), source.tolist()):
                ids[to:end] = run_ids[at : at + end - to]
                if weighted:
                    weights[to:end] = run_weights[at : at + end - to] if run_weights.size else 1.0
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
    """A file as an array; not as np.memmap, whose slices cost four times as much to make."""
    return np.asarray(np.memmap(path, dtype, "r")) if path.stat().st_size else np.empty(0, dtype)


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
