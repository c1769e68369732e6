"""Files of a Git commit, read from the object store: nothing is checked out, no link followed, no hook run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import xxhash

from data.sources.limits import BombError, CorruptError, FetchError

TREE_SECONDS = 600.0  # a million files take seconds; trees of trees without a file may have no end
BLOB_SECONDS = 10.0  # of a damaged object git may promise more bytes than it writes, and wait for the next request
GIT_SECONDS = 600.0  # a clone of a large repository; everything else takes seconds
PROTOCOLS = "https:http:ssh:git:file"
URL = re.compile(r"(https?|ssh|git|file)://[^\s-][^\s]*")
SAFE = (
    "-c", "safe.directory=*", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false",
    "-c", "protocol.ext.allow=never", "-c", "core.symlinks=false", "-c", "gc.auto=0",
    "-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=60",  # seconds, for a silent server
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Blob:
    """One entry of a commit's tree. mode: Git's octal file mode; size: bytes, -1 of no file or a damaged one."""

    path: str
    mode: str
    sha: str
    size: int


def git(arguments: Sequence[str], *, folder: str | None = None, protocols: str = "") -> bytes:
    """Standard output of a git command. ValueError with git's own last line where it fails.

    protocols: those it may fetch with; none but for our own clone, since a repository's settings may name a remote that
    git would ask for missing objects, and the command to ask it with.
    """
    command = ["git", *SAFE, *(["--git-dir", folder] if folder else []), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=GIT_SECONDS, env=_environment(protocols), check=False
        )
    except FileNotFoundError as error:
        raise ValueError("reading repositories needs the git command: install git") from error
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"git {arguments[0]} took more than {GIT_SECONDS:g} s") from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ValueError(f"git {arguments[0]} failed: {said[-1] if said else done.returncode}")
    return done.stdout


def _environment(protocols: str = "") -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return {
        **kept,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": protocols,  # "" refuses all, which git before 2.45 needs: it knows no GIT_NO_LAZY_FETCH
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "LC_ALL": "C",
    }


def is_url(repository: str) -> bool:
    """Whether a repository is named by URL rather than by local path."""
    return URL.fullmatch(repository) is not None


def git_folder(repository: str, commit: str, cache: Path) -> str:
    """The object store of a repository: its own folder, or a bare shallow clone in `cache` (made once).

    FetchError where a URL does not give the commit.
    """
    if not is_url(repository):
        root = Path(repository).expanduser()
        found = root / ".git" if (root / ".git").exists() else root
        if not found.exists():
            raise ValueError(
                f"no repository at {repository!r}: expected a folder with .git, a bare repository, or a URL"
            )
        if found.is_file():  # a worktree or submodule: the file says where
            return git(["-C", str(root), "rev-parse", "--absolute-git-dir"]).decode().strip()
        return str(found)
    target = cache / f"{xxhash.xxh3_64_hexdigest(f'{repository} {commit}'.encode())}.git"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        git(["init", "--quiet", "--bare", str(temporary)])
        fetch = ["fetch", "--quiet", "--depth", "1", "--no-tags", "--", repository, commit]
        try:
            git(fetch, folder=str(temporary), protocols=PROTOCOLS)
        except ValueError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise FetchError(f"{repository}: {error}") from error
        git(["update-ref", "refs/heads/read", "FETCH_HEAD"], folder=str(temporary))
        temporary.rename(target)
    return str(target)


def resolve(repository: str, commit: str, cache: Path) -> tuple[str, str]:
    """(object store, full commit hash)."""
    folder = git_folder(repository, commit, cache)
    name = "refs/heads/read" if is_url(repository) else commit
    if name.startswith("-"):
        raise ValueError(f"commit is {commit!r}: expected a hash, a branch or a tag")
    return folder, git(
        ["rev-parse", "--verify", "--end-of-options", f"{name}^{{commit}}"], folder=folder
    ).decode().strip()


def list_tree(folder: str, commit: str, limit: int) -> list[Blob]:
    """Every entry of the commit, in path order; submodules too (mode 160000).

    BombError beyond `limit` entries: a few kilobytes of trees that name each other can stand for billions of files.
    """
    try:
        entries = _walked(folder, commit, limit, "--long")
    except CorruptError:  # git ends at the first file whose size it cannot tell; the others are not its fault
        entries = _walked(folder, commit, limit)
        sizes = _sizes(folder, [entry.sha for entry in entries])
        entries = [replace(entry, size=sizes.get(entry.sha, -1)) for entry in entries]
    return sorted(entries, key=lambda entry: entry.path)


def _walked(folder: str, commit: str, limit: int, *options: str) -> list[Blob]:
    command = ["git", *SAFE, "--git-dir", folder, "ls-tree", "-r", "-z", *options, commit]
    entries: list[Blob] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment()) as process:
        assert process.stdout is not None
        timer = threading.Timer(TREE_SECONDS, process.kill)
        timer.start()
        rest = b""
        try:
            while chunk := process.stdout.read(1 << 20):
                *lines, rest = (rest + chunk).split(b"\0")
                entries += map(_entry, lines)
                if len(entries) > limit:
                    process.kill()
                    raise BombError(f"more than {limit} files")
        finally:
            timer.cancel()
    if process.returncode == -signal.SIGKILL:
        raise BombError(f"the tree was not walked in {TREE_SECONDS:g} s")
    if process.returncode:
        raise CorruptError(f"git ls-tree failed on {commit[:12]}")
    return entries


def _entry(line: bytes) -> Blob:
    head, _, path = line.partition(b"\t")
    mode, _, sha, *size = head.decode().split()
    return Blob(path.decode("utf-8", "replace"), mode, sha, int(size[0]) if size and size[0].isdigit() else -1)


def _sizes(folder: str, names: Sequence[str]) -> dict[str, int]:
    """Bytes of the files among these objects; those that are missing or damaged are left out."""
    command = ["git", *SAFE, "--git-dir", folder, "cat-file", "--batch-check"]
    found: dict[str, int] = {}
    rest = list(names)
    while rest:
        try:
            done = subprocess.run(
                command, input="\n".join(rest).encode(), capture_output=True, timeout=GIT_SECONDS, env=_environment()
            )
        except subprocess.TimeoutExpired:
            return found
        told = [line.split() for line in done.stdout.splitlines()]
        found |= {name: int(line[2]) for name, line in zip(rest, told) if len(line) == 3 and line[1] == b"blob"}
        rest = rest[len(told) + 1 :] if done.returncode else []  # it ended at the one behind the last that it told
    return found


class BlobReader:
    """`git cat-file --batch` kept open: one process for all files of a repository."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["git", *SAFE, "--git-dir", self._folder, "cat-file", "--batch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
        )

    def __enter__(self) -> BlobReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            try:
                if stream is not None:
                    stream.close()
            except BrokenPipeError:  # what was asked of a process that had ended
                continue
        self._process.wait()

    def read(self, blob: Blob) -> bytes:
        """The file's bytes. ValueError where the object is missing or damaged."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(f"{blob.sha}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError as error:
            self._restart()
            raise ValueError("git cat-file ended") from error
        timer = threading.Timer(BLOB_SECONDS, self._process.kill)
        timer.start()
        try:
            return self._answer(blob)
        finally:
            timer.cancel()

    def _answer(self, blob: Blob) -> bytes:
        assert self._process.stdout is not None
        head = self._process.stdout.readline().split()
        if not head:  # git ends at a damaged object; the others are not its fault
            self._restart()
        if len(head) != 3 or head[1] != b"blob":
            raise ValueError(f"object {blob.sha[:12]} does not read")
        size = int(head[2])
        data = self._process.stdout.read(size + 1)
        if len(data) <= size:
            self._restart()
            raise ValueError(f"object {blob.sha[:12]} ends early")
        return data[:size]

    def _restart(self) -> None:
        self._stop()
        self._process = self._start()

    def read_all(self, blobs: Sequence[Blob]) -> Iterator[tuple[Blob, bytes]]:
        """(blob, bytes) one after the other."""
        for blob in blobs:
            yield blob, self.read(blob)
