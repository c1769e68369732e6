"""A dataset at a URL (`gs://`, `s3://`, any fsspec file system): worked on in a folder, kept in the store.

    data.path=s3://bucket/name              data.work=/mnt/shared/name    on a cluster: a folder that all machines see

Stages rename, append and map files into memory, which object stores cannot. So they work in `data.work`, by default a
folder of this machine, and what is whole goes to the store, where an upload is there whole or not at all:

    stages/NAME-KEY/    of a step at work, the files that have their final names, oldest first: at any moment the store
                        holds what a kill could have left in a folder. stage.json comes last: with it, the step is whole
    documents/ ...      copied within the store from stages/; manifest.json comes last: with it, the dataset is whole

A driver that starts elsewhere takes down what is there and goes on. A reader takes what it opens: `find_dataset` the
manifest, tokenizer and index, `at_hand` the rest when it is needed. What comes down must have the size that the store
and the manifest say; token shards must also hold their number of records. The driver does all transfers. Two drivers
must not build one dataset at once: stores have no locks.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from data.manifest import MANIFEST, parse_manifest
from data.sources.remote import filesystem_of, is_remote
from data.tables import TEMPORARY_SUFFIX, atomic_path

KEEP_SECONDS = 20.0  # between two looks for whole files of a step at work
TRANSFERS = 8  # at once
TRIES, RETRY_SECONDS = 4, 1.0
STORE_NOTE = "store.url"  # in a folder whose dataset is kept in a store: the URL
LAST = ("stage.json", MANIFEST)  # files that say that others are whole
UNFINISHED = (TEMPORARY_SUFFIX, ".partial", ".strikes", STORE_NOTE)  # ends of names that stay here

T = TypeVar("T")


class Store:
    """The place of one dataset in a file system of fsspec, and the folder that mirrors it."""

    def __init__(self, url: str, folder: Path):
        self.url, self.folder = url.rstrip("/"), folder
        self._files, root = filesystem_of(self.url)
        self._root = root.rstrip("/")
        self._sent: dict[str, tuple[int, int]] = {}  # {name: (time, bytes)} of files of steps at work

    def sizes(self, below: str = "") -> dict[str, int]:
        """{path below the dataset: bytes} of what the store holds, below one of its folders."""

        def look() -> dict[str, Any]:
            self._files.invalidate_cache()  # others write too
            return self._files.find(f"{self._root}/{below}".rstrip("/"), detail=True)

        start = len(self._root) + 1
        return {name[start:]: int(info["size"]) for name, info in sorted(self._tried("list", below, look).items())}

    def read(self, name: str) -> bytes | None:
        """A small file, None where it is not there."""
        try:
            return self._tried("read", name, lambda: self._files.cat_file(f"{self._root}/{name}"))
        except FileNotFoundError:
            return None

    def put(self, names: Iterable[str]) -> None:
        """Send files of the folder, those that say that others are whole at the end."""
        first, last = _in_order(names)
        self._all(self._put_one, first)
        self._all(self._put_one, last)

    def get(self, names: Iterable[str], sizes: Mapping[str, int], *, below: str = "", into: Path | None = None) -> None:
        """Take files that the folder lacks or has with another size; `below` of the store becomes `into`."""
        target = self.folder / below if into is None else into

        def take(name: str) -> None:
            path = target / name[len(below) :].lstrip("/")
            if path.is_file() and path.stat().st_size == sizes[name]:
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                self._tried("fetch", name, lambda: self._files.get_file(f"{self._root}/{name}", str(temporary)))
                if (found := temporary.stat().st_size) != sizes[name]:
                    raise ValueError(f"{self.url}/{name}: {found} bytes came, expected {sizes[name]}")

        first, last = _in_order(names)
        self._all(take, first)
        self._all(take, last)

    def remove(self, names: Iterable[str]) -> None:
        """Delete from the store, what says that others are whole before those others."""

        def remove(name: str) -> None:
            self._tried("delete", name, lambda: self._files.rm_file(f"{self._root}/{name}"))

        rest, whole = _in_order(names)
        for part in (whole, [n for n in rest if "/done/" in n], [n for n in rest if "/done/" not in n]):
            self._all(remove, part)

    def copy(self, names: Mapping[str, str]) -> None:
        """Copy within the store: {new name: name that is there}."""

        def copy(new: str) -> None:
            self._tried("copy", new, lambda: self._files.cp_file(f"{self._root}/{names[new]}", f"{self._root}/{new}"))

        self._all(copy, names)

    def publish(self, links: Mapping[str, str], steps: Iterable[str]) -> None:
        """Make the store hold a whole dataset: what readers see, from the steps' files, and no other step."""
        folders = {name.partition("/")[0] for name in links} | {"documents", "dropped", "tokenizer", "tokens"}
        old = {name for folder in folders for name in self.sizes(folder)}
        self.copy(links)
        used = tuple(f"{step}/" for step in steps)
        unused = {name for name in self.sizes("stages") if not name.startswith(used)}
        self.remove((old - set(links)) | unused)
        self.put(["build.log", MANIFEST])
        (self.folder / STORE_NOTE).write_text(self.url, encoding="utf-8")

    def is_whole(self, key: str) -> bool:
        """Whether the store has the whole dataset of this key."""
        text = self.read(MANIFEST)
        if text is None or (manifest := parse_manifest(text, f"{self.url}/{MANIFEST}"))["key"] != key:
            return False
        sizes = self.sizes()
        return all(sizes.get(name) == size for name, size in manifest["files"].items())

    def take_step(self, name: str, partial: str) -> None:
        """Take down a step that this machine has not begun, or that is whole there and not here."""
        sizes = self.sizes(name)
        whole = f"{name}/stage.json" in sizes
        target = self.folder / (name if whole else partial)
        if whole and target.is_dir():
            self.get(sizes, sizes, below=name)  # what a reader did not bring
        if not sizes or target.is_dir() or (self.folder / name).is_dir():
            return
        taken = target.with_name(f"{target.name}.taken")  # whole or not there: part of it would pass for a step's state
        self.get(sizes, sizes, below=name, into=taken)
        shutil.rmtree(target, ignore_errors=True)
        taken.rename(target)

    def put_step(self, name: str) -> None:
        """Make the store hold a whole step: its files and no others, stage.json last."""
        there, here = self.sizes(name), _sizes(self.folder / name, self.folder)
        if f"{name}/stage.json" in there and there == here:
            return
        old = [file for file, sent in self._sent.items() if file in here and sent != _state(self.folder / file)]
        missing = [file for file, size in here.items() if there.get(file) != size or file in old or file.endswith(LAST)]
        first, last = _in_order(missing)
        self.put(first)
        self.remove(set(there) - set(here))
        self.put(last)

    @contextmanager
    def keeping(self, partial: Path, name: str) -> Iterator[None]:
        """Send what becomes whole of a step at work while the block runs."""
        over = threading.Event()

        def keep() -> None:
            while not over.wait(KEEP_SECONDS):
                try:
                    self.send_whole(partial, name, over)
                except ValueError as error:
                    print(f"{error}; the build goes on, and sends it again", flush=True)

        thread = threading.Thread(target=keep, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def send_whole(self, partial: Path, name: str, over: threading.Event) -> None:
        """Send the files of a step at work that are new since the last look, oldest first."""
        found = []
        for file in partial.rglob("*"):
            below = file.relative_to(partial)
            try:
                if file.is_file() and not any(part.endswith(UNFINISHED) for part in below.parts):
                    found.append((_state(file), below.as_posix()))
            except OSError:
                continue  # gone since
        for state, below_name in sorted(found):
            key = f"{name}/{below_name}"
            if over.is_set():
                return
            if self._sent.get(key) != state:
                try:
                    self._put_one(key, partial / below_name)
                except FileNotFoundError:
                    continue  # gone since
                self._sent[key] = state

    def _put_one(self, name: str, path: Path | None = None) -> None:
        source = self.folder / name if path is None else path
        if not source.is_file():
            raise FileNotFoundError(source)
        self._tried("write", name, lambda: self._files.put_file(str(source), f"{self._root}/{name}"))

    def _all(self, do: Callable[[str], None], names: Iterable[str]) -> None:
        with ThreadPoolExecutor(TRANSFERS) as threads:
            for _ in threads.map(do, names):
                pass

    def _tried(self, what: str, name: str, do: Callable[[], T]) -> T:
        """Several tries; ValueError in one line after the last, FileNotFoundError where a file to read is not there."""
        for attempt in range(TRIES):
            time.sleep(attempt * RETRY_SECONDS)
            try:
                return do()
            except Exception as caught:  # every store has its own errors for what a network does
                if isinstance(caught, FileNotFoundError) and what == "read":
                    raise
                error = caught
                if isinstance(caught, PermissionError | FileNotFoundError):
                    break
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{self.url}: cannot {what} {name!r} ({type(error).__name__}: {reason})") from error


def mirror_folder(url: str) -> Path:
    """Where a dataset in a store is worked on and read by default: below $XDG_CACHE_HOME (~/.cache)."""
    url = url.rstrip("/")
    name = f"{url.rpartition('/')[2]}-{xxhash.xxh3_64_hexdigest(url.encode())}"
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "sluice" / "datasets" / name


def find_dataset(path: str, folder: Path | None = None) -> Path:
    """The folder of a whole dataset: `path` itself, or where what readers need of one in a store was brought.

    Raises ValueError in one line where the store has no whole dataset at this URL.
    """
    if not is_remote(path):
        return Path(path.removeprefix("file://"))
    folder = folder or mirror_folder(path)
    store = Store(path, folder)
    text = store.read(MANIFEST)
    if text is None:
        raise ValueError(f"{path}: no whole dataset here ({MANIFEST} is missing); build it with python -m data.main")
    files = parse_manifest(text, f"{path}/{MANIFEST}")["files"]
    with _alone(folder):
        if not (here := folder / MANIFEST).is_file() or here.read_bytes() != text:
            here.unlink(missing_ok=True)
            for old in {name.partition("/")[0] for name in files}:
                shutil.rmtree(folder / old, ignore_errors=True)
        (folder / STORE_NOTE).write_text(store.url, encoding="utf-8")
        store.get([n for n in files if n.startswith("tokenizer/") or n.endswith("/index.arrow")], files)
        for split in {name.split("/")[1] for name in files if name.startswith("tokens/")}:
            (folder / "tokens" / split).mkdir(parents=True, exist_ok=True)
        if not here.is_file():
            with atomic_path(here) as temporary:
                temporary.write_bytes(text)
    return folder


def at_hand(dataset: Path, *below: str) -> None:
    """Bring folders or files of a dataset that is kept in a store; nothing for one that is not."""
    note = dataset / STORE_NOTE
    if not note.is_file():
        return
    store = Store(note.read_text(encoding="utf-8"), dataset)
    files = json.loads((dataset / MANIFEST).read_text(encoding="utf-8"))["files"]
    for part in below:
        wanted = {name: size for name, size in files.items() if name == part or name.startswith(f"{part}/")}
        if not wanted:  # stages/, which the manifest does not list
            wanted = {name: size for name, size in store.sizes(part).items() if name.endswith((".parquet", ".json"))}
        store.get(wanted, wanted)


def _state(path: Path) -> tuple[int, int]:
    """(when it was written, its bytes): oldest first in order."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _in_order(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """(files, files that say that those are whole)."""
    names = sorted(names)
    return [n for n in names if not n.endswith(LAST)], [n for n in names if n.endswith(LAST)]


def _sizes(folder: Path, root: Path) -> dict[str, int]:
    return {p.relative_to(root).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of this machine at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{STORE_NOTE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
