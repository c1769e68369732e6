"""Build a dataset: read -> stages -> tokenizer -> tokens -> manifest, skipping whatever is already done.

    DATASET/stages/NAME-KEY/           the whole output of one stage; NAME-KEY.partial while it is made
    DATASET/documents/  dropped/       the last stage's documents; all stages' drops, personal data replaced
    DATASET/tokenizer/  tokens/        what training reads; all four are hard links into stages/ (or copies)
    DATASET/manifest.json              written last: with it the dataset is whole
    DATASET/build.log                  times and rates, the one file that differs between two builds; also the lock

A stage is done again exactly when its key changes (see data.keys): a moved threshold redoes its stage and those after
it. The folders of stages that the config no longer asks for are removed when the build is whole, not before. A build
that is killed goes on where it stopped and writes the same bytes as one that is not.
"""

from __future__ import annotations

import errno
import fcntl
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import xxhash

from data.chat_stage import Chats
from data.clean.pii import LIBRARIES as PII_LIBRARIES
from data.engine import LocalPool
from data.engine_ray import Ray
from data.folders import PUBLISHED, STAGES, Step, publish, run_step, say
from data.keys import KEY_DIGITS, library_versions, plain
from data.manifest import FORMAT, MANIFEST, damaged_file, list_sizes, read_manifest
from data.sources.remote import is_remote
from data.sources.source import Source
from data.stage import NOT_IN_KEY, Stage
from data.steps import dropped_step, read_step, stage_step, token_steps
from data.store import STORE_NOTE, Store, at_hand, find_dataset, mirror_folder
from data.tables import LIBRARIES as TABLE_LIBRARIES
from data.tables import write_json
from data.tokenizer_config import TokenizerConfig
from data.tokenizer_extend import TokenizerExtension, TokenizerSource
from data.tokenizer_train import LIBRARIES as TOKENIZER_LIBRARIES
from data.tokens import LIBRARIES as TOKENS_LIBRARIES


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A dataset: where from, what is done to it, where to.

    path: the dataset's folder, or a URL (`gs://`, `s3://`, what fsspec knows) where it is kept (see data.store).
    work: the folder where a dataset with a URL is worked on, which all machines of a cluster must see; None for one of
        this machine, below $XDG_CACHE_HOME/sluice (~/.cache).
    sources: what is read; each has a name of its own.
    stages: what is done to the documents, in order (`data.stage.Stage`).
    tokenizer: how the tokenizer is trained, or what writes a ready one; None builds documents only, without tokens.
    engine: where stages run; never changes what is written.
    seed: of the order in which token shards are written.
    split_languages: token shards by source and language, so that loader.weights and held-out scores know languages.
    shard_bytes: UTF-8 bytes of text in one document shard: what one worker holds in work at a time.
    rebuild: False takes the dataset at `path` as it is, whatever has become of its inputs, of library versions and of
        this config, and builds nothing: for a dataset that was built elsewhere.
    """

    path: str = field(metadata=NOT_IN_KEY)
    sources: tuple[Source, ...]
    stages: tuple[Stage, ...] = ()
    tokenizer: TokenizerConfig | TokenizerExtension | TokenizerSource | None
    engine: LocalPool | Ray = field(default=LocalPool(), metadata=NOT_IN_KEY)
    seed: int = 0
    split_languages: bool = False
    shard_bytes: int = 64 << 20
    rebuild: bool = field(default=True, metadata=NOT_IN_KEY)
    work: str | None = field(default=None, metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        if not names:
            raise ValueError("data.sources is empty: expected at least one source of documents")
        for name in names:
            if not name or any(character in name for character in ":/\\") or name.split() != [name]:
                raise ValueError(f"data.sources: {name!r} is no name for a source: no space, ':' or '/', please")
            if names.count(name) > 1:
                raise ValueError(f"data.sources: two sources are called {name!r}; give each a name of its own")
        if self.shard_bytes <= 0:
            raise ValueError(f"data.shard_bytes must be positive, got {self.shard_bytes}")
        for stage in self.stages:
            for name, *_ in getattr(stage, "recipes", ()):
                if name not in names:
                    known = ", ".join(names)
                    raise ValueError(f"data.stages: {stage.name} has a recipe for {name!r}; the sources are {known}")
            if isinstance(stage, Chats) and self.tokenizer is not None:
                base = self.tokenizer.base if isinstance(self.tokenizer, TokenizerExtension) else self.tokenizer
                if stage.tokenizer != base:
                    raise ValueError(
                        f"data.stages: chats are rendered for {stage.tokenizer!r} and encoded by data.tokenizer="
                        f"{base!r}, which has another template and other special tokens: give both the same"
                    )


def build_dataset(config: DataConfig) -> Path:
    """Build the dataset, or find that it is whole; its folder.

    Raises ValueError in one line for what a person has to mend: a shard that cannot be read, a full disk, a folder that
    cannot be written, books that do not balance.
    """
    dataset = dataset_folder(config)
    store = Store(config.path, dataset) if is_remote(config.path) else None
    if not config.rebuild:
        if store is not None:
            return find_dataset(config.path, dataset)
        damage = damaged_file(dataset, read_manifest(dataset))
        if damage is not None:
            raise ValueError(f"{dataset}: {damage}; copy the dataset again, or build it with data.rebuild=True")
        return dataset
    steps = plan(config)
    key = dataset_key(steps)
    if _is_whole(dataset, key, store):
        return dataset if store is None else find_dataset(config.path, dataset)
    with _failures_in_one_line(dataset):
        dataset.mkdir(parents=True, exist_ok=True)
        with (dataset / "build.log").open("a", encoding="utf-8") as log:
            _lock(log)
            if not _is_whole(dataset, key, store):  # another process may have built it while this one waited
                _build(config, dataset, steps, log, store)
    return dataset if store is None else find_dataset(config.path, dataset)


def dataset_folder(config: DataConfig) -> Path:
    """The folder on this machine where the dataset is, or where one with a URL is worked on and read."""
    if is_remote(config.path):
        return mirror_folder(config.path) if config.work is None else Path(config.work)
    return Path(config.path.removeprefix("file://"))


def plan(config: DataConfig) -> list[Step]:
    """Every step of a build in order, with its key. Reads nothing but what identifies the input."""
    dataset = dataset_folder(config)
    steps = [read_step(source, config.shard_bytes) for source in config.sources]
    before = list(steps)
    names: list[str] = []
    for stage in config.stages:
        names.append(stage.name)
        name = stage.name if names.count(stage.name) == 1 else f"{stage.name}.{names.count(stage.name)}"
        steps.append(stage_step(dataset, stage, name, before))
        before = steps[-1:]
    steps.append(dropped_step(dataset, steps))
    if config.tokenizer is not None:
        steps += token_steps(dataset, config.tokenizer, config.seed, before, config.split_languages)
    return steps


def dataset_key(steps: Sequence[Step]) -> str:
    """The key of the whole dataset: it changes when that of any step does."""
    return xxhash.xxh3_128_hexdigest(" ".join(step.key for step in steps).encode("ascii"))[:KEY_DIGITS]


def document_shards(dataset: Path) -> list[Path]:
    """The shards of a whole dataset's documents, in order."""
    at_hand(dataset, "documents")
    return sorted((dataset / "documents").glob("*.parquet"))


def _build(config: DataConfig, dataset: Path, steps: Sequence[Step], log: TextIO, store: Store | None) -> None:
    started = time.monotonic()
    for line in _why_again(config, dataset):
        say(log, line)
    (dataset / MANIFEST).unlink(missing_ok=True)  # from here until the end the dataset is not whole
    if store is not None:
        (dataset / STORE_NOTE).unlink(missing_ok=True)
        store.remove([MANIFEST] if store.read(MANIFEST) is not None else [])
    libraries = tuple(name for name in _versions(config) if name != "python")
    with config.engine.session(dataset, libraries) as engine:
        say(log, f"dataset {dataset}: {len(steps)} steps, {config.engine}")
        records = [run_step(step, dataset, engine, log, store) for step in steps]
    links = publish(dataset, steps)
    used = {step.folder for step in steps}
    for folder in sorted((dataset / STAGES).iterdir()):
        if f"{STAGES}/{folder.name}" not in used:
            say(log, f"{folder.name}: removed, the config does not ask for it any more")
            shutil.rmtree(folder)
    write_json(dataset / MANIFEST, _manifest(config, dataset, steps, records))
    if store is not None:
        store.publish(links, used)
    say(log, f"dataset {config.path}: whole after {time.monotonic() - started:.1f} s")


def _manifest(
    config: DataConfig, dataset: Path, steps: Sequence[Step], records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    documents = [
        {key: value for key, value in record.items() if key != "files"} for record in records if "counts" in record
    ]
    others = {
        record["name"]: {key: value for key, value in record.items() if key not in ("files", "name")}
        for record in records
        if "counts" not in record
    }
    return {
        "format": FORMAT,
        "key": dataset_key(steps),
        "config": plain(config),
        "versions": _versions(config),
        "stages": documents,
        **others,
        "files": list_sizes(dataset, PUBLISHED),
    }


def _versions(config: DataConfig) -> dict[str, str]:
    """Of Python and of every library that a key of this config holds."""
    libraries = {*TABLE_LIBRARIES, *PII_LIBRARIES, *TOKENIZER_LIBRARIES, *TOKENS_LIBRARIES}
    for source in config.sources:
        libraries.update(source.libraries)
    for stage in config.stages:
        libraries.update(stage.libraries)
    return {"python": platform.python_version(), **library_versions(libraries)}


def _why_again(config: DataConfig, dataset: Path) -> list[str]:
    """What is different from the dataset that stands here, in lines for a person."""
    if not (dataset / MANIFEST).is_file():
        return []
    manifest = read_manifest(dataset)
    lines = []
    if manifest["config"] != plain(config):
        lines.append("the config changed")
    for name, version in _versions(config).items():
        before = manifest["versions"].get(name)
        if before != version and before is not None:
            lines.append(f"{name} was {before} and is {version}")
    damage = damaged_file(dataset, manifest)
    if damage is not None:
        lines.append(damage)
    reason = "; ".join(lines) or "its inputs or the code of a stage changed"
    return [f"dataset {dataset}: building what is not up to date: {reason}"]


def _is_whole(dataset: Path, key: str, store: Store | None) -> bool:
    if store is not None:
        return store.is_whole(key)
    if not (dataset / MANIFEST).is_file():
        return False
    manifest = read_manifest(dataset)
    return manifest["key"] == key and damaged_file(dataset, manifest) is None


def _lock(log: TextIO) -> None:
    """Hold the log for this process; another build of the same dataset is waited for."""
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{log.name}: another process is building this dataset; waiting for it", flush=True)
        fcntl.flock(log, fcntl.LOCK_EX)
    except OSError as error:  # some network file systems have no locks
        say(log, f"{log.name} cannot be locked ({error.strerror}): make sure that nobody else builds this dataset")


@contextmanager
def _failures_in_one_line(dataset: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"{dataset}: the disk is full: free some space and run the same command, which goes on from here"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            message = f"{dataset}: cannot be written ({error.strerror}: {error.filename}); set another data.path"
        else:
            raise
        raise ValueError(message) from error
