"""Real text that every machine has: the prose and the code of installed Python packages.

`PythonProse` yields docstrings and the `pydoc` topics, `PythonCode` whole .py files, both of the standard library and
of the distributions that the config names. Files are parsed with `ast` and never imported.

Which files are read when there are more than `max_bytes` is decided by a hash of their names, so the choice does not
depend on the order in which a machine lists them. Files beyond the cap are not read at all; a file that is read and
cannot be decoded or parsed is a counted drop.
"""

from __future__ import annotations

import ast
import csv
import inspect
import io
import math
import os
import re
import sys
import sysconfig
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import xxhash

from data.document import Document, Dropped
from data.sources.base import make_document, make_drop

VERSION = 1
STANDARD_LIBRARY = "python"  # how the standard library is called in ids and meta
STANDARD_LICENCE = "PSF-2.0"
TOPICS_FILE = "pydoc_data/topics.py"
# Not everywhere where Python is: tests (Debian leaves them out), bundled wheels, one machine's build settings.
LEFT_OUT = re.compile(r"(^|/)(site-packages|dist-packages|__pycache__|test|tests|idle_test|_bundled)/|_sysconfigdata")
FULL = 0.95  # of a budget: the first document that does not fit after this ends the shard


@dataclass(frozen=True, kw_only=True)
class PythonPackages:
    """What both sources share: the files, the cap and the provenance.

    packages: distributions by the names that pip uses; each must be installed.
    standard_library: whether to read it too.
    max_bytes: UTF-8 bytes of text at most; max_group_bytes: the same for one top-level package or module, so that
        none fills the corpus (None: a tenth of max_bytes; the pydoc topics are always read whole).
    shard_bytes: text in one shard, which is what one worker reads at a time.
    """

    name: str
    packages: tuple[str, ...] = ()
    standard_library: bool = True
    max_bytes: int
    max_group_bytes: int | None = None
    shard_bytes: int = 2 << 20

    version: ClassVar[int] = VERSION
    code_modules: ClassVar[tuple[str, ...]] = ("data.sources.python_packages", "data.sources.base")
    libraries: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.max_bytes <= 0 or self.shard_bytes <= 0:
            raise ValueError(f"{self.name}: max_bytes and shard_bytes must be positive")
        if not self.packages and not self.standard_library:
            raise ValueError(f"{self.name}: nothing to read: name packages or set standard_library=True")

    def shards(self) -> Sequence[dict[str, Any]]:
        """{"files": [[package, key, path], ...], "budget": bytes, "group_budget": bytes}, files in hash order."""
        files = sorted(self.files(), key=_hash_order)
        count = max(1, min(math.ceil(self.max_bytes / self.shard_bytes), len(files)))
        group = self.max_group_bytes or self.max_bytes // 10
        budgets = {"budget": self.max_bytes // count, "group_budget": max(1, group // count)}
        return [{"files": [list(file) for file in files[index::count]], **budgets} for index in range(count)]

    def inputs_key(self) -> Any:
        """Versions of Python and of the packages, number and total size of their files."""
        files = self.files()
        return {
            "python": sys.version.split()[0],
            "packages": {package: _distribution(package, self.name).version for package in sorted(self.packages)},
            "files": len(files),
            "bytes": sum(os.stat(path).st_size for _, _, path in files),  # noqa: PTH116,
        }

    def files(self) -> list[tuple[str, str, str]]:
        """(package, name below the package's root, path) of every .py file of the standard library and the packages."""
        found = list(_standard_files()) if self.standard_library else []
        for package in self.packages:
            found += _package_files(package, self.name)
        return found

    def documents(self, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """Documents of the shard's files until its budget is used up."""
        total = 0
        by_group: Counter[str] = Counter()
        licences: dict[str, tuple[str, str | None]] = {}
        for package, key, path in shard["files"]:
            group = PurePosixPath(key).parts[0].removesuffix(".py")
            if by_group[group] >= FULL * shard["group_budget"]:
                continue
            if package not in licences:
                licences[package] = _version_and_licence(package, self.name)
            version, licence = licences[package]
            meta = {"package": package, "version": version, "licence": licence, "path": key, "group": group}
            for result in self._read(package, key, Path(path), {**meta, "module": _module(key)}):
                size = 0 if isinstance(result, Dropped) else len(result.text.encode("utf-8"))
                if total + size > shard["budget"]:
                    if total >= FULL * shard["budget"]:
                        return
                elif by_group[group] + size <= shard["group_budget"] or key == TOPICS_FILE:
                    total += size
                    by_group[group] += size
                    yield result

    def _read(self, package: str, key: str, path: Path, meta: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """All documents of one file, or the drop that says why there are none."""
        record = f"{package}/{key}"
        try:
            text = _decode(path.read_bytes())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in other people's strings
                tree = ast.parse(text)
            yield from self._extract(record, text, tree, meta)
        except (UnicodeDecodeError, LookupError) as error:
            yield make_drop(self.name, record, "undecodable", value=str(error), meta=meta)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            yield make_drop(self.name, record, "unparseable", value=str(error), meta=meta)

    def _extract(self, record: str, text: str, tree: ast.Module, meta: Mapping[str, Any]) -> Iterator[Any]:
        raise NotImplementedError(f"{type(self).__name__} extracts nothing")


@dataclass(frozen=True, kw_only=True)
class PythonCode(PythonPackages):
    """Whole .py files."""

    name: str = "code"

    def _extract(self, record: str, text: str, tree: ast.Module, meta: Mapping[str, Any]) -> Iterator[Any]:
        yield make_document(self.name, record, text, {**meta, "line": 1, "language": "python"})


@dataclass(frozen=True, kw_only=True)
class PythonProse(PythonPackages):
    """Docstrings of modules, classes and functions, with their indentation taken off, and the `pydoc` topics."""

    name: str = "prose"

    def _extract(self, record: str, text: str, tree: ast.Module, meta: Mapping[str, Any]) -> Iterator[Any]:
        found = _topics(tree) if record == f"{STANDARD_LIBRARY}/{TOPICS_FILE}" else _docstrings(tree)
        for line, title, prose in found:
            details = {**meta, "line": line, "title": title or meta["module"], "language": "en"}
            yield make_document(self.name, f"{record}:{line}", prose, details)


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """(line, qualified name, docstring) of the module and of every class and function in it, top to bottom."""
    stack: list[tuple[str, ast.AST]] = [("", tree)]
    while stack:
        name, node = stack.pop()
        body = getattr(node, "body", [])
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and body:
            first = body[0]
            prose = first.value.value if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) else None
            if isinstance(prose, str):
                yield first.lineno, name, inspect.cleandoc(prose)
        children = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
        for child in reversed(children):
            inner = getattr(child, "name", None)
            stack.append((f"{name}.{inner}".lstrip(".") if isinstance(inner, str) else name, child))


def _topics(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """(line, topic, text) of the dictionary literal that pydoc's help is generated into."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for key, value in zip(node.value.keys, node.value.values):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield key.lineno, str(key.value), value.value


def _decode(data: bytes) -> str:
    """The text of a Python file in its declared encoding, line ends as \\n."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    except SyntaxError as error:
        raise LookupError(str(error)) from error
    return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def _hash_order(file: tuple[str, str, str]) -> tuple[str, str]:
    name = f"{file[0]}/{file[1]}"
    return xxhash.xxh3_64_hexdigest(name.encode("utf-8")), name


def _standard_files() -> Iterator[tuple[str, str, str]]:
    root = sysconfig.get_paths()["stdlib"]
    for folder, folders, names in os.walk(root):
        below = folder[len(root) + 1 :].replace(os.sep, "/")
        folders[:] = [name for name in folders if not LEFT_OUT.search(f"{below}/{name}/")]
        for name in names:
            key = f"{below}/{name}".lstrip("/")
            if name.endswith(".py") and not LEFT_OUT.search(key):
                yield STANDARD_LIBRARY, key, os.path.join(folder, name)  # noqa: PTH118 (thousands of them at each start)


def _package_files(package: str, source: str) -> Iterator[tuple[str, str, str]]:
    distribution = _distribution(package, source)
    root = str(distribution.locate_file(""))
    for key in _listed(distribution, package, source):
        if key.endswith(".py") and ".." not in key and not LEFT_OUT.search(key):
            path = os.path.join(root, key)  # noqa: PTH118
            if os.path.isfile(path):  # noqa: PTH113
                yield package, key, path


def _listed(distribution: metadata.Distribution, package: str, source: str) -> list[str]:
    """The files of a package, below the folder that packages are in."""
    if (record := distribution.read_text("RECORD")) is not None:  # one CSV row a file, its name first (PEP 376)
        return [row[0] for row in csv.reader(record.splitlines()) if row]
    # an older pip that had no `wheel` ran setup.py; the list is relative to the folder of the package's description
    if (installed := distribution.read_text("installed-files.txt")) is not None:
        return [line.removeprefix("../") for line in installed.splitlines()]
    raise ValueError(f"{source}: package {package!r} has no list of its files; install it with pip")


def _distribution(package: str, source: str) -> metadata.Distribution:
    try:
        return metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise ValueError(
            f"{source}: package {package!r} is not installed; install it (pip install -r requirements.txt) "
            "or take it out of `packages`"
        ) from None


def _version_and_licence(package: str, source: str) -> tuple[str, str | None]:
    if package == STANDARD_LIBRARY:
        return sys.version.split()[0], STANDARD_LICENCE
    distribution = _distribution(package, source)
    fields = distribution.metadata
    texts = fields.get_all("License-Expression") or fields.get_all("License") or [""]
    named = texts[0].strip().split("\n")[0].strip()
    if not named or len(named) > 60:  # some put the whole text of the licence there: the classifier says it shortly
        classifiers = [c.split(" :: ")[-1] for c in fields.get_all("Classifier") or [] if c.startswith("License ::")]
        named = classifiers[0] if classifiers else named[:60]
    return distribution.version, named or None


def _module(key: str) -> str:
    return key.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
