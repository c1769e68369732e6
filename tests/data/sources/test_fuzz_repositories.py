"""Mutated git repositories: refused in one line, or every entry counts once."""

from __future__ import annotations

import random
import subprocess
import time
import zlib
from pathlib import Path

import pytest

from data.sources import git_objects
from data.sources.git_repository import GitSource
from tests.data.sources.helpers import read
from tests.data.sources.test_code_sources import git
from tests.data.sources.wounds import SIZES, check, mutate


def a_repository(folder: Path) -> tuple[Path, list[Path]]:
    """A small repository of our own sources, and the files of its store: loose objects, references, a pack."""
    root = folder / "project"
    git(folder, "init", "-q", "-b", "main", str(root))
    names = ["LICENSE", *(f"data/sources/{name}.py" for name in ("base", "jsonl", "limits", "wat", "epub"))]
    for number, name in enumerate(names):
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((Path(__file__).parents[3] / name).read_bytes())
        git(root, "add", "-A")
        git(root, "commit", "-q", "-m", str(number))
        if number == 2:
            git(root, "gc", "-q")
    store = root / ".git"
    return root, [path for path in sorted(store.rglob("*")) if path.is_file() and _matters(path.relative_to(store))]


def _matters(path: Path) -> bool:
    return path.parts[0] in ("objects", "refs", "HEAD", "packed-refs") and path.suffix not in (".rev", ".graph")


@SIZES
@pytest.mark.timeout(600)
def test_wounded_repositories(cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository whose commit does not resolve is refused with a line; of any other every entry counts once."""
    monkeypatch.setattr("data.sources.git_objects.BLOB_SECONDS", 2.0)
    root, stored = a_repository(tmp_path)
    rng, source = random.Random(19), GitSource(name="f", repositories=(str(root),))
    for case in range(cases):
        path = rng.choice(stored)
        path.chmod(0o644)
        data = path.read_bytes()
        loose = path.parent.parent.name == "objects" and len(path.parent.name) == 2
        path.write_bytes(zlib.compress(mutate(zlib.decompress(data), rng)) if loose and case % 2 else mutate(data, rng))
        listed = subprocess.run(["git", "-C", str(root), "ls-tree", "-rz", "HEAD"], capture_output=True, check=False)
        start = time.monotonic()
        try:
            kept, dropped = check(source)
        except ValueError as error:
            assert "rev-parse" in str(error) and "\n" not in str(error)
        else:
            seen = 1 if listed.returncode else listed.stdout.count(b"\0")
            assert kept + dropped == seen, f"case {case}, {path}: {kept} kept and {dropped} dropped of {seen}"
        assert time.monotonic() - start < 20, f"case {case} took too long"
        path.write_bytes(data)


def test_a_broken_blob_costs_that_file_only(tmp_path: Path) -> None:
    root, _ = a_repository(tmp_path)
    for name in ("LICENSE", "data/sources/epub.py"):
        sha = git(root, "rev-parse", f"HEAD:{name}").strip()
        path = root / ".git" / "objects" / sha[:2] / sha[2:]
        path.parent.mkdir(exist_ok=True)
        if path.exists():
            path.chmod(0o644)
        path.write_bytes(b"broken")
    kept, dropped = check(GitSource(name="f", repositories=(str(root),), leave_out=()))
    assert kept + dropped == 6 and kept >= 4


def test_a_file_whose_size_cannot_be_told_costs_that_file_only(tmp_path: Path) -> None:
    root, _ = a_repository(tmp_path)
    sha = git(root, "rev-parse", "HEAD:data/sources/wat.py").strip()
    (root / ".git" / "objects" / sha[:2] / sha[2:]).unlink()  # the newest commits lie outside of the pack
    source = GitSource(name="f", repositories=(str(root),), leave_out=())
    documents, drops = read(source)
    corrupt = [drop.document.meta["path"] for drop in drops if drop.drop.reason == "corrupt_record"]
    assert corrupt == ["data/sources/wat.py"] and len(documents) + len(drops) == 6 and len(documents) >= 4


def test_trees_that_stand_for_billions_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty trees, each of which holds the one before twice, and no file: a walk without an end and without a word."""
    monkeypatch.setattr(git_objects, "TREE_SECONDS", 1.0)
    git(tmp_path, "init", "-q", str(tmp_path))

    def write(kind: str, data: bytes) -> str:
        command = ["git", "-C", str(tmp_path), "hash-object", "-w", "-t", kind, "--literally", "--stdin"]
        return subprocess.run(command, input=data, capture_output=True, check=True).stdout.decode().strip()

    tree = write("tree", b"")
    for _ in range(60):
        tree = write("tree", b"".join(b"40000 %s\0" % name + bytes.fromhex(tree) for name in (b"a", b"b")))
    commit = write("commit", f"tree {tree}\nauthor a <a> 0 +0000\ncommitter a <a> 0 +0000\n\nx\n".encode())
    start = time.monotonic()
    assert check(GitSource(name="f", repositories=(str(tmp_path),), commit=commit)) == (0, 1)
    assert time.monotonic() - start < 10
