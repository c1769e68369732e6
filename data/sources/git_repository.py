"""Git repositories at a commit: source files by language, with licences and marks, or whole repositories in one text.

GitSource(name="code", repositories=("~/src/project", "https://host/team/other.git"), languages=("Python", "Rust"))
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from data.document import Document, Dropped
from data.sources.base import make_document, make_drop
from data.sources.git_objects import Blob, BlobReader, is_url, list_tree, resolve
from data.sources.licences import LICENCE_FILE, header_licence, repository_licence
from data.sources.limits import BombError, CorruptError, FetchError
from data.sources.notebooks import notebook_text
from data.sources.source_code import dependency_order, imports_of, language_of, marks_of

LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # the file itself is in another store
SYMLINK, SUBMODULE = "120000", "160000"
MAX_LICENCE_BYTES = 1 << 20
LAYOUTS = ("files", "repository")
MARKS = ("vendored", "generated", "minified")


def joint_licence(licences: Iterable[str | None]) -> str | None:
    """The SPDX expression of files put together: all of theirs; NOASSERTION stands for files that name none."""
    names = sorted({name or "NOASSERTION" for name in licences})
    if names == ["NOASSERTION"]:
        return None
    return names[0] if len(names) == 1 else " AND ".join(f"({name})" if " OR " in name else name for name in names)


@dataclass(frozen=True, kw_only=True)
class GitSource:
    """Repositories, each at one commit.

    repositories: local folders or URLs; commit: a hash, branch or tag, the same for all ("HEAD" for the newest).
    languages: names as in Linguist that are kept; () keeps every known one.
    leave_out: marks ("vendored", "generated", "minified") that make a file a counted drop; the others stand in meta.
    layout: "files" (a document a file), or "repository" (one a repository, imported files first, for long context; cut
        at file ends into parts of at most `max_document_bytes`).
    max_files: in one repository; one with more is a counted drop as a whole.
    max_repository_bytes: with layout "repository", of the texts of one, which are all held in memory; the files beyond,
        in path order, are counted drops.
    cache: where URLs are cloned to, bare and shallow.
    """

    name: str
    repositories: tuple[str, ...]
    commit: str = "HEAD"
    languages: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = MARKS
    layout: str = "files"
    max_files: int = 1_000_000
    max_file_bytes: int = 1 << 20
    max_document_bytes: int = 8 << 20
    max_repository_bytes: int = 1 << 30
    cache: str = "~/.cache/sluice/git"

    version: ClassVar[int] = 6
    code_modules: ClassVar[tuple[str, ...]] = tuple(
        f"data.sources.{name}"
        for name in ("base", "git_repository", "git_objects", "jsonl", "licences", "notebooks", "source_code")
    )
    libraries: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS or any(mark not in MARKS for mark in self.leave_out):
            raise ValueError(
                f"layout {self.layout!r}, leave_out {self.leave_out}: expected {LAYOUTS} and some of {MARKS}"
            )

    def shards(self) -> Sequence[dict[str, Any]]:
        """One a repository; its name in ids is its last path part, numbered where two share it."""
        names: dict[str, int] = {}
        shards = []
        for repository in self.repositories:
            base = PurePosixPath(repository.rstrip("/")).name.removesuffix(".git") or "repository"
            names[base] = names.get(base, 0) + 1
            shards.append({"repository": repository, "key": base if names[base] == 1 else f"{base}-{names[base]}"})
        return shards

    def inputs_key(self) -> Any:
        """The full hash of every commit; None for a URL that gives none. FetchError where none of all does."""
        key: list[list[str | None]] = []
        failed: FetchError | None = None
        for repository in self.repositories:
            try:
                key.append([repository, self._resolve(repository)[1]])
            except FetchError as error:
                failed = error
                key.append([repository, None])
        if failed is not None and not any(commit for _, commit in key):
            raise failed
        return key

    def documents(self, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """Files in path order; every entry of the tree is a document, part of one, or a counted drop."""
        try:
            folder, commit = self._resolve(shard["repository"])
        except FetchError as error:
            yield make_drop(self.name, shard["key"], "fetch_failed", value=str(error))
            return
        try:
            entries = list_tree(folder, commit, self.max_files)
        except (BombError, CorruptError) as error:
            reason = "expands_too_far" if isinstance(error, BombError) else "corrupt_file"
            yield make_drop(self.name, shard["key"], reason, value=str(error), meta={"commit": commit})
            return
        with BlobReader(folder) as reader:
            licence = self._licence(reader, entries)
            common = {
                "repository": shard["repository"] if is_url(shard["repository"]) else shard["key"],
                "commit": commit,
            }
            common.update(repository_licence=licence, group=shard["key"])
            files = self._files(reader, entries, shard, common)
            if self.layout == "repository":
                yield from self._repository(files, shard, common)
            else:
                for item in files:
                    yield (
                        item
                        if isinstance(item, Dropped)
                        else make_document(self.name, f"{shard['key']}:{item[0]}", item[1], item[2])
                    )

    def _resolve(self, repository: str) -> tuple[str, str]:
        return resolve(repository, self.commit, Path(self.cache).expanduser())

    def _licence(self, reader: BlobReader, entries: Sequence[Blob]) -> str | None:
        texts = {}
        for entry in entries:
            if LICENCE_FILE.search(entry.path) and entry.mode.startswith("100") and 0 < entry.size <= MAX_LICENCE_BYTES:
                try:
                    texts[entry.path] = reader.read(entry).decode("utf-8", "replace")
                except ValueError:  # the file itself is counted where its turn comes
                    continue
            if len(texts) >= 20:
                break
        return repository_licence(texts)

    def _files(
        self, reader: BlobReader, entries: Sequence[Blob], shard: Mapping[str, Any], common: Mapping[str, Any]
    ) -> Iterator[tuple[str, str, dict[str, Any]] | Dropped]:
        """(path, text, meta) or a drop for each entry."""
        for entry in entries:
            meta: dict[str, Any] = {**common, "path": entry.path}
            found = self._file(reader, entry, meta)
            if isinstance(found, str):
                yield entry.path, found, meta
                continue
            reason, value, threshold = found
            record = f"{shard['key']}:{entry.path}"
            yield make_drop(self.name, record, reason, value=value, threshold=threshold, meta=meta)

    def _file(self, reader: BlobReader, entry: Blob, meta: dict[str, Any]) -> str | tuple[str, Any, Any]:
        """The text, or (reason, value, threshold)."""
        if entry.mode in (SYMLINK, SUBMODULE):
            return ("symlink" if entry.mode == SYMLINK else "submodule"), None, None
        if entry.size < 0:
            return "corrupt_record", f"object {entry.sha[:12]} does not read", None
        if entry.size > self.max_file_bytes:
            return "record_too_large", entry.size, self.max_file_bytes
        try:
            data = reader.read(entry)
        except ValueError as error:
            return "corrupt_record", str(error), None
        if data.startswith(LFS_POINTER):
            return "lfs_pointer", None, None
        if b"\0" in data[:8192]:
            return "binary", None, None
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
            meta["encoding"] = "latin-1"
        language = language_of(entry.path, text)
        meta["programming_language"] = language
        if language is None or (self.languages and language not in self.languages):
            return ("unknown_language" if language is None else "other_language"), language, None
        meta["licence"] = header_licence(text) or meta["repository_licence"]
        marks = marks_of(entry.path, text, language)
        meta.update(dict.fromkeys(marks, True))
        for mark in marks:
            if mark in self.leave_out:
                return mark, None, None
        if language == "Jupyter Notebook":
            try:
                text, more = notebook_text(text)
            except ValueError as error:
                return "bad_notebook", str(error), None
            meta.update(more)
        return text if text.strip() else ("empty_text", None, None)

    def _repository(
        self,
        files: Iterator[tuple[str, str, dict[str, Any]] | Dropped],
        shard: Mapping[str, Any],
        common: Mapping[str, Any],
    ) -> Iterator[Document | Dropped]:
        """All files of a repository one after the other, what is imported before what imports it."""
        texts: dict[str, tuple[str, str | None]] = {}
        licences: dict[str, str | None] = {}
        held, limit = 0, self.max_repository_bytes
        for item in files:
            if isinstance(item, Dropped):
                yield item
                continue
            path, text, meta = item
            held += len(text.encode("utf-8", "replace"))
            if held <= limit:
                texts[path] = text, meta.get("programming_language")
                licences[path] = meta.get("licence")
            else:
                record, reason = f"{shard['key']}:{path}", "beyond_max_repository_bytes"
                yield make_drop(self.name, record, reason, value=held, threshold=limit, meta=meta)
        stems = {PurePosixPath(path).stem: path for path in sorted(texts, reverse=True)}
        imports = {path: imports_of(path, text, language, stems) for path, (text, language) in texts.items()}
        part: list[str] = []
        names: list[str] = []
        size, number = 0, 0
        for path in dependency_order(imports):
            block = f"# file: {path}\n{texts[path][0].rstrip()}\n"
            if part and size + len(block.encode("utf-8", "replace")) > self.max_document_bytes:
                yield self._part(shard, number, part, {name: licences[name] for name in names}, common)
                part, size, number, names = [], 0, number + 1, []
            part.append(block)
            names.append(path)
            size += len(block.encode("utf-8", "replace"))
        if part:
            yield self._part(shard, number, part, {name: licences[name] for name in names}, common)

    def _part(
        self,
        shard: Mapping[str, Any],
        number: int,
        part: list[str],
        licences: Mapping[str, str | None],
        common: Mapping[str, Any],
    ) -> Document | Dropped:
        meta = {
            **common,
            "files": list(licences),
            "records": len(licences),
            "licence": joint_licence(licences.values()),
            "part": number,
        }
        return make_document(self.name, f"{shard['key']}:part-{number}", "\n".join(part), meta)
