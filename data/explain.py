"""The life of one document: `python -m data.explain --dataset DIR DOC_ID`.

Goes through the stages of a dataset in order and says what each did with the document: where it came from, every
cleaning step with its numbers against their thresholds, what was changed, scores, where and why it was dropped, or the
shard and row where it lies. The cleaning steps are asked again, with the settings that the manifest holds.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.clean.recipes import recipe_from_json
from data.clean.step import Recipe
from data.document import Document, Drop, Dropped
from data.features import Features
from data.manifest import read_manifest
from data.store import at_hand, find_dataset
from data.tables import read_documents, read_dropped


def explain(dataset: Path, identifier: str) -> str:
    """The life of a document as text. ValueError where the dataset is not whole or never met the document."""
    manifest = read_manifest(dataset)
    at_hand(dataset, "documents", "stages")
    configs = iter(manifest["config"]["stages"])
    lines: list[str] = []
    before: Document | None = None
    for stage in manifest["stages"]:
        reads = stage["name"].startswith("read-")
        config: dict[str, Any] = {} if reads else next(configs, {})
        folder = dataset / stage["folder"]
        found = _find(folder, identifier)
        if found is None:
            if before is not None and not reads:
                lines.append(f"{stage['name']}: not found in its shards: the dataset is damaged, build it again")
                break
            continue
        where, row, result = found
        document = result.document if isinstance(result, Dropped) else result
        if before is None:
            lines += _origin(document)
        lines.append(f"{stage['name']}: " + _verdict(result))
        if config.get("type") in ("Clean", "Score", "Decide") and before is not None:
            lines += _steps(config, before)
        if before is not None:
            lines += _changes(before, document)
        if isinstance(result, Dropped):
            return "\n".join([*lines, f"lies in {where.relative_to(dataset)}, row {row}"])
        before = document
    if before is None:
        raise ValueError(f"{dataset}: no document {identifier!r}; ids are the first column of documents/*.parquet")
    return "\n".join([*lines, *_place(dataset, identifier)])


def _find(folder: Path, identifier: str) -> tuple[Path, int, Document | Dropped] | None:
    for kind in ("kept", "dropped"):
        for path in sorted((folder / kind).glob("*.parquet")):
            row = _row_of(path, identifier)
            if row is not None:
                rows: Iterator[Document | Dropped] = read_documents(path) if kind == "kept" else read_dropped(path)
                return path, row, next(item for place, item in enumerate(rows) if place == row)
    return None


def _row_of(path: Path, identifier: str) -> int | None:
    """The row of an id in a shard, read from that column alone, a row group at a time."""
    with pq.ParquetFile(path) as file:
        start = 0
        for group in range(file.num_row_groups):
            ids = file.read_row_group(group, columns=["id"]).column("id")
            place = pc.index(ids, pa.scalar(identifier, ids.type)).as_py()
            if place >= 0:
                return start + place
            start += len(ids)
    return None


def _origin(document: Document) -> list[str]:
    hidden = ("changed", "pii")
    meta = {name: value for name, value in document.meta.items() if name not in hidden}
    return [f"document {document.id}", f"source {document.source}", *(f"  {name}: {meta[name]}" for name in meta)]


def _verdict(result: Document | Dropped) -> str:
    return f"dropped by {result.step}: {_shown(result.drop)}" if isinstance(result, Dropped) else "kept"


def _shown(drop: Drop) -> str:
    against = f", {drop.value} against {drop.threshold}" if drop.value is not None else ""
    return f"{drop.reason}{against}" + (f", as in {drop.partner}" if drop.partner else "")


def _steps(config: dict[str, Any], document: Document) -> list[str]:
    """Each step of the document's recipe again, with the numbers of its rules."""
    named = dict(config.get("recipes", []))
    value = named.get(document.source, config.get("default"))
    recipe = recipe_from_json(value) if value else None
    if not isinstance(recipe, Recipe):
        return ["  its recipe holds steps that are not part of data.clean: they cannot be asked again"]
    lines = [f"  recipe {recipe.name}"]
    for step in recipe.steps:
        features = Features(document.text)
        result = step(document, features)
        lines.append(f"    {step.name}: " + (f"drops it: {_shown(result)}" if isinstance(result, Drop) else "passes"))
        for rule in getattr(step, "rules", ()):
            limit = "at least" if rule.at_least else "at most"
            lines.append(f"      {rule.reason}: {rule.measure(features):.4g}, {limit} {rule.threshold:g}")
        if isinstance(result, Document):
            document = result
    return lines


def _changes(before: Document, after: Document) -> list[str]:
    lines = []
    if before.text != after.text:
        lines.append(f"  text: {len(before.text):,} characters before, {len(after.text):,} after")
    if after.meta.get("changed") != before.meta.get("changed"):
        lines += [f"  changed by {step}: {counts}" for step, counts in after.meta["changed"].items()]
    if after.meta.get("pii") and after.meta.get("pii") != before.meta.get("pii"):
        kinds = Counter(kind for kind, _, _ in after.meta["pii"])
        lines.append(f"  personal data replaced: {dict(kinds)}")
        lines += [f"    {kind} at {start} to {end}" for kind, start, end in after.meta["pii"]]
    for name, value in after.scores.items():
        if name not in ("measured", "also_dropped_by") and before.scores.get(name) != value:
            lines.append(f"  score {name}: {value}")
    lines += [f"  {step} would have dropped it too: {why}" for step, why in after.scores.get("also_dropped_by", [])]
    if "split" in after.meta and "split" not in before.meta:
        lines.append(f"  split: {after.meta['split']}")
    return lines


def _place(dataset: Path, identifier: str) -> list[str]:
    lines = []
    for path in sorted((dataset / "documents").glob("*.parquet")):
        row = _row_of(path, identifier)
        if row is not None:
            lines.append(f"lies in {path.relative_to(dataset)}, row {row}")
    for path in sorted((dataset / "tokens").glob("*/index.arrow")):
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            index = reader.read_all()
            column = index.column("doc_id")
            place = pc.index(column, pa.scalar(identifier, column.type)).as_py()
            if place >= 0:
                row_values = index.slice(place, 1).to_pylist()[0]
                told = ", ".join(f"{k} {v}" for k, v in row_values.items() if k not in ("doc_id", "source"))
                lines.append(f"tokens in {path.parent.relative_to(dataset)}: {told}")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m data.explain", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", required=True, help="its folder, or the URL where it is kept")
    parser.add_argument("document", metavar="DOC_ID", help="the id of a document, kept or dropped")
    arguments = parser.parse_args(argv)
    try:
        print(explain(find_dataset(arguments.dataset), arguments.document))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
