"""manifest.json: what a dataset is made of, and the books of every stage. Written last: with it, a dataset is whole.

key        hash of everything that shaped the dataset
config     the data section of the config, without what shapes no bytes (path, engine)
versions   of Python and of the libraries in the keys
stages     in order: {name, key, folder, counts: {read, created, kept, dropped},
           sources: {SOURCE: {read, created, kept, dropped, kept_bytes, dropped_bytes, heldout, heldout_bytes}},
           reasons: [{step, reason, source, documents, bytes}, ...]}        bytes: UTF-8 bytes of text
tokenizer, tokens      their keys, folders and figures
files      {path below the dataset: size in bytes}
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.engine import Engine

MANIFEST = "manifest.json"
FORMAT = 1
# How `data.tables` writes meta["split"]: compact JSON, where no quote inside a string goes without a backslash.
HELDOUT_MARK = '"split":"heldout"'
SOURCE_COUNTS = ("read", "created", "kept", "dropped", "kept_bytes", "dropped_bytes", "heldout", "heldout_bytes")

Row = tuple[str, str, str, int, int, int, int]  # source, step, reason, documents, bytes, held-out documents and bytes


def read_manifest(dataset: Path) -> dict[str, Any]:
    """The manifest of a whole dataset; ValueError in one line where there is none."""
    path = dataset / MANIFEST
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(
            f"{dataset}: no whole dataset here ({MANIFEST} is missing); build it with python -m data.main --config ..."
        ) from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error}); remove it and build again") from None
    return parse_manifest(text, str(path))


def parse_manifest(text: bytes, path: str) -> dict[str, Any]:
    """A manifest from its bytes; ValueError in one line, naming the path, for what is none."""
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read ({error}); remove it and build again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path}: expected manifest format {FORMAT}; remove it and build again")
    return manifest


def damaged_file(dataset: Path, manifest: Mapping[str, Any]) -> str | None:
    """The first file that is missing or has another size than when it was built, with what is wrong; None if none."""
    for name, size in manifest["files"].items():
        path = dataset / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, expected {size}"
    return None


def list_sizes(dataset: Path, folders: Iterable[str]) -> dict[str, int]:
    """{path below the dataset: bytes} of every file in these folders, sorted."""
    paths = (path for folder in folders for path in (dataset / folder).rglob("*") if path.is_file())
    return {path.relative_to(dataset).as_posix(): path.stat().st_size for path in sorted(paths)}


def tally_stage(folder: Path, before: Mapping[str, int] | None, engine: Engine) -> dict[str, Any]:
    """The books of a stage by source and by reason, counted from the files that it wrote.

    before: documents of each source that came in; None for a reading stage, where all of them came from outside.
    """
    kept = _tally(sorted((folder / "kept").glob("*.parquet")), engine, f"count {folder.name}")
    dropped = _tally(sorted((folder / "dropped").glob("*.parquet")), engine, f"count {folder.name}")
    sources: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(SOURCE_COUNTS, 0))
    reasons = []
    for source, count in (before or {}).items():
        sources[source]["read"] = count
    for source, _, _, documents, size, heldout, heldout_size in kept:
        books = sources[source]
        books["kept"] += documents
        books["kept_bytes"] += size
        books["heldout"] += heldout
        books["heldout_bytes"] += heldout_size
    for source, step, reason, documents, size, _, _ in dropped:
        sources[source]["dropped"] += documents
        sources[source]["dropped_bytes"] += size
        reasons.append({"step": step, "reason": reason, "source": source, "documents": documents, "bytes": size})
    for books in sources.values():
        came_out = books["kept"] + books["dropped"]
        if before is None:
            books["read"] = came_out
        books["created"] = came_out - books["read"]
    return {"sources": dict(sorted(sources.items())), "reasons": reasons}


def _tally(paths: Sequence[Path], engine: Engine, label: str) -> list[Row]:
    """Rows of all shards added up, sorted by source, step and reason."""
    total: dict[tuple[str, str, str], list[int]] = {}
    for rows in engine.map_shards(_tally_shard, paths, label=label):
        for source, step, reason, *numbers in rows:
            key = (source, step, reason)
            total[key] = [a + b for a, b in zip(total.get(key, [0] * len(numbers)), numbers)]
    return [(*key, *numbers) for key, numbers in sorted(total.items())]  # type: ignore[misc]


def _tally_shard(path: Path) -> list[Row]:
    rows: list[Row] = []
    with pq.ParquetFile(path) as file:
        keys = ["source", *(name for name in ("step", "reason") if name in file.schema_arrow.names)]
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=[*keys, "text", "meta"], use_threads=False)
            size = pc.cast(pc.binary_length(table["text"]), pa.int64())
            heldout = pc.cast(pc.match_substring(table["meta"], HELDOUT_MARK), pa.int64())
            counted = table.select(keys)
            for name, column in (("size", size), ("heldout", heldout), ("heldout_size", pc.multiply(size, heldout))):
                counted = counted.append_column(name, column)
            sums = [("size", "count"), ("size", "sum"), ("heldout", "sum"), ("heldout_size", "sum")]
            for row in counted.group_by(keys, use_threads=False).aggregate(sums).to_pylist():
                numbers = (row["size_count"], row["size_sum"], row["heldout_sum"], row["heldout_size_sum"])
                rows.append((row["source"], row.get("step", ""), row.get("reason", ""), *numbers))
    return rows
