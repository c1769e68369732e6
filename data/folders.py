"""Folders of a dataset in the making: one below stages/ for each step, and those that readers see.

A step works in `stages/NAME-KEY.partial`, which becomes `stages/NAME-KEY` when it is whole; `stage.json` in it holds
the step's record and the size of every file. What a killed step left in its partial folder is there when it runs again.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from data.engine import Engine
from data.manifest import damaged_file, list_sizes
from data.store import Store
from data.tables import TEMPORARY_SUFFIX, write_json

STAGES = "stages"
PARTIAL = ".partial"
STAGE_FILE = "stage.json"
PUBLISHED = ("documents", "dropped", "tokenizer", "tokens")


@dataclass(frozen=True)
class Step:
    """One folder below stages/: its name and key, and the work that fills it and returns the record of stage.json."""

    name: str
    key: str
    run: Callable[[Path, Engine], dict[str, Any]]

    @property
    def folder(self) -> str:
        """Its folder below the dataset."""
        return f"{STAGES}/{self.name}-{self.key}"


def run_step(step: Step, dataset: Path, engine: Engine, log: TextIO, store: Store | None = None) -> dict[str, Any]:
    """Do one step unless its folder is there and undamaged; the record of its stage.json. store: keeps it as well."""
    if store is None:
        return _run_step(step, dataset, engine, log, nullcontext())
    store.take_step(step.folder, step.folder + PARTIAL)
    keeping = store.keeping(dataset / (step.folder + PARTIAL), step.folder)
    record = _run_step(step, dataset, engine, log, keeping)
    store.put_step(step.folder)
    return record


def _run_step(
    step: Step, dataset: Path, engine: Engine, log: TextIO, keeping: AbstractContextManager[None]
) -> dict[str, Any]:
    folder = dataset / step.folder
    partial = folder.with_name(folder.name + PARTIAL)
    if folder.is_dir():
        damage = _damage(folder)
        if damage is None:
            say(log, f"{step.name:<20} done before, {step.key}")
            return read_record(folder)
        say(log, f"{step.name}: {damage}; done again")
        shutil.rmtree(folder)
    started = time.monotonic()
    partial.mkdir(parents=True, exist_ok=True)
    _remove_temporary(partial)
    with keeping:
        record = step.run(partial, engine)
    # Each goes at once, by a rename, and the notes of what is done before what they stand on: whatever a kill here
    # leaves, the step runs well again.
    for name in ("done", "scratch"):
        if (partial / name).is_dir():
            (partial / name).rename(partial / (name + TEMPORARY_SUFFIX))
    _remove_temporary(partial)
    record = {"name": step.name, "key": step.key, "folder": step.folder, **record}
    files = list_sizes(partial, ["."])
    files.pop(STAGE_FILE, None)
    record["files"] = files
    write_json(partial / STAGE_FILE, record)
    partial.rename(folder)
    say(log, _line(step.name, record, time.monotonic() - started))
    return record


def read_record(folder: Path) -> dict[str, Any]:
    """What a stage's folder says of itself (stage.json): name, key, counts, sources, reasons, files."""
    try:
        return json.loads((folder / STAGE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / STAGE_FILE}: cannot be read ({error}); remove {folder} and build again") from None


def kept_shards(folders: Sequence[Path]) -> list[Path]:
    """The shards of documents that went on from these stages, in order."""
    return [path for folder in folders for path in sorted((folder / "kept").glob("*.parquet"))]


def publish(dataset: Path, steps: Sequence[Step]) -> dict[str, str]:
    """Make documents/, dropped/, tokenizer/ and tokens/ anew from the stages' folders; {file: what it is a link to}."""
    for name in PUBLISHED:
        for old in (dataset / name, dataset / (name + PARTIAL)):
            if old.exists():
                shutil.rmtree(old)
    by_name = {step.name: dataset / step.folder for step in steps}
    document_steps = [step for step in steps if (dataset / step.folder / "kept").is_dir()]
    reading = [step for step in document_steps if step.name.startswith("read-")]
    last = document_steps[len(reading) :][-1:] or reading
    shards = kept_shards([dataset / step.folder for step in last])
    files = {f"documents/{index:05d}.parquet": path for index, path in enumerate(shards)}
    for name, folder in (("dropped", "."), ("tokenizer", "."), ("tokens", "tokens")):
        if name in by_name:
            root = by_name[name] / folder
            paths = (path for path in sorted(root.rglob("*")) if path.is_file() and path.name != STAGE_FILE)
            files.update({f"{name}/{path.relative_to(root).as_posix()}": path for path in paths})
    (dataset / ("dropped" + PARTIAL)).mkdir()  # there even when nothing was dropped
    for name, path in files.items():
        top, _, below = name.partition("/")
        target = dataset / (top + PARTIAL) / below
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(path, target)
    for name in PUBLISHED:
        if (dataset / (name + PARTIAL)).is_dir():
            (dataset / (name + PARTIAL)).rename(dataset / name)
    return {name: path.relative_to(dataset).as_posix() for name, path in files.items()}


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EXDEV, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        shutil.copyfile(source, target)


def _damage(folder: Path) -> str | None:
    """What is wrong with a stage's folder that has its final name; None if nothing."""
    try:
        return damaged_file(folder, read_record(folder))
    except ValueError:
        return f"{STAGE_FILE} is missing or unreadable"


def _remove_temporary(folder: Path) -> None:
    for path in sorted(folder.rglob(f"*{TEMPORARY_SUFFIX}")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def say(log: TextIO, line: str) -> None:
    """Tell a person, and the log with the time."""
    print(line, flush=True)
    log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {line}\n")
    log.flush()


def _line(name: str, record: Mapping[str, Any], seconds: float) -> str:
    counts = record.get("counts")
    if counts is None:
        return f"{name:<20} {seconds:>7.1f} s"
    rate = counts["read"] / max(seconds, 1e-3)
    size = sum(books["kept_bytes"] for books in record["sources"].values()) / 1e6
    kept, dropped = counts["kept"], counts["dropped"]
    books = f"kept {kept:>9,} ({size:,.1f} MB)  dropped {dropped:>9,}"
    return f"{name:<20} {seconds:>7.1f} s  {books}  {rate:,.0f} documents/s"
