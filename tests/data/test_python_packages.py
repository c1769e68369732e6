"""The quickstart corpus: what is read, how it is capped, where it came from."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

import pytest

from data.document import Document, Dropped
from data.sources import python_packages
from data.sources.python_packages import PythonCode, PythonPackages, PythonProse

SMALL = {"packages": ("xxhash", "tqdm"), "standard_library": False}


def read(source: PythonPackages) -> tuple[list[Document], list[Dropped]]:
    results = [result for shard in source.shards() for result in source.documents(shard)]
    documents = [result for result in results if isinstance(result, Document)]
    return documents, [result for result in results if isinstance(result, Dropped)]


def test_code_is_whole_files_with_their_provenance() -> None:
    documents, dropped = read(PythonCode(**SMALL, max_bytes=10**7, max_group_bytes=10**7))
    by_path = {document.meta["path"]: document for document in documents}
    auto = by_path["tqdm/auto.py"]
    import tqdm

    assert auto.text == (Path(tqdm.__file__).parent / "auto.py").read_text(encoding="utf-8")
    assert auto.id == "code:tqdm/tqdm/auto.py" and auto.source == "code"
    assert auto.meta["package"] == auto.meta["group"] == "tqdm" and auto.meta["module"] == "tqdm.auto"
    assert auto.meta["version"] == tqdm.__version__ and "MIT" in auto.meta["licence"] and auto.meta["line"] == 1
    assert {document.meta["group"] for document in documents} == {"tqdm", "xxhash"}
    assert all(row.drop.reason == "empty_text" for row in dropped)
    assert len({document.id for document in documents}) == len(documents)


def test_prose_is_every_docstring_and_nothing_else() -> None:
    documents, _ = read(PythonProse(**SMALL, max_bytes=10**7, max_group_bytes=10**7))
    import tqdm

    expected = set()
    for path in Path(tqdm.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                prose = ast.get_docstring(node)
                if prose and prose.strip():
                    expected.add(prose)
    assert {document.text for document in documents if document.meta["package"] == "tqdm"} == expected
    document = next(d for d in documents if d.meta["title"] == "tqdm.update" and d.meta["path"] == "tqdm/std.py")
    lines = (Path(tqdm.__file__).parent / "std.py").read_text(encoding="utf-8").splitlines()
    assert '"""' in lines[document.meta["line"] - 1]


def test_pydoc_topics_are_read_whole() -> None:
    shard = next(
        {**shard, "files": [file for file in shard["files"] if file[1] == python_packages.TOPICS_FILE]}
        for shard in PythonProse(max_bytes=4_000_000).shards()
        if any(file[1] == python_packages.TOPICS_FILE for file in shard["files"])
    )
    from pydoc_data.topics import topics

    texts = {document.meta["title"]: document.text for document in PythonProse(max_bytes=4_000_000).documents(shard)}
    assert texts == topics


def test_the_caps_hold_and_do_not_depend_on_the_order_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    source = PythonCode(packages=("tqdm",), max_bytes=600_000, max_group_bytes=100_000, shard_bytes=200_000)
    shards = source.shards()
    documents, _ = read(source)
    sizes: dict[str, int] = {}
    for document in documents:
        sizes[document.meta["group"]] = sizes.get(document.meta["group"], 0) + len(document.text.encode())
    assert 500_000 < sum(sizes.values()) <= 600_000 and max(sizes.values()) <= 100_000 and len(sizes) > 5
    listing = PythonPackages.files
    monkeypatch.setattr(PythonPackages, "files", lambda self: listing(self)[::-1])
    assert source.shards() == shards


def test_the_key_names_versions() -> None:
    key = PythonCode(**SMALL, max_bytes=10**6).inputs_key()
    assert key["python"] == sys.version.split()[0] and set(key["packages"]) == {"tqdm", "xxhash"}
    assert key["files"] > 10 and key["bytes"] > 10_000


def test_nothing_is_imported_and_bad_files_are_counted(tmp_path: Path) -> None:
    files = {
        "boom.py": b"raise SystemExit('imported')\n",
        "two.py": b"print 'python 2'\n",
        "latin.py": b"# -*- coding: latin-1 -*-\nname = 'caf\xe9'\n",
        "broken.py": b"name = 'caf\xe9'\n",
        "unknown.py": b"# coding: no-such-codec\n",
        "zero.py": b"x = 1\x00\n",
        "empty.py": b"",
        "surrogate.py": b'"""half \\ud800 a pair"""\n',
        "deep.py": b"x = " + b"(" * 5000 + b")" * 5000 + b"\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    shard = {
        "files": [["python", name, str(tmp_path / name)] for name in files],
        "budget": 10**6,
        "group_budget": 10**6,
    }
    results = list(PythonCode(max_bytes=1000).documents(shard))
    reasons = {r.document.meta["path"]: r.drop.reason for r in results if isinstance(r, Dropped)}
    texts = {r.meta["path"]: r.text for r in results if isinstance(r, Document)}
    assert reasons == {
        "two.py": "unparseable", "zero.py": "unparseable", "deep.py": "unparseable",
        "broken.py": "undecodable", "unknown.py": "undecodable", "empty.py": "empty_text",
    }  # fmt: skip
    assert texts["latin.py"].endswith("name = 'café'\n") and "boom.py" in texts
    prose = [r for r in PythonProse(max_bytes=1000).documents(shard) if isinstance(r, Document)]
    assert [document.text for document in prose] == ["half \ufffd a pair"]


def test_a_package_that_an_old_pip_installed_has_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `wheel`, pip 23.0 runs setup.py: the list of files has another name and other places."""
    about = tmp_path / "oldpack-1.0.egg-info"
    for name, text in {
        "oldpack/__init__.py": '"""What an old package is for."""\n',
        "oldpack/deep/part.py": '"""What a part of it is for."""\n',
        "unlisted/x.py": '"""Of another package."""\n',
        f"{about.name}/PKG-INFO": "Metadata-Version: 1.0\nName: oldpack\nVersion: 1.0\nLicense: MIT\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    listed = ("../oldpack/__init__.py", "../oldpack/__pycache__/x.pyc", "../oldpack/deep/part.py", "PKG-INFO")
    (about / "installed-files.txt").write_text("\n".join(listed) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    documents, _ = read(PythonProse(packages=("oldpack",), standard_library=False, max_bytes=10**6))
    assert sorted(document.meta["path"] for document in documents) == ["oldpack/__init__.py", "oldpack/deep/part.py"]
    (about / "installed-files.txt").unlink()
    with pytest.raises(ValueError, match="'oldpack' has no list of its files"):
        read(PythonProse(packages=("oldpack",), standard_library=False, max_bytes=10**6))


def test_missing_packages_and_empty_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"code: package 'no-such-package' is not installed; .*requirements.txt"):
        PythonCode(packages=("no-such-package",), max_bytes=1000).shards()
    with pytest.raises(ValueError, match="nothing to read"):
        PythonCode(standard_library=False, max_bytes=1000)
    with pytest.raises(ValueError, match="must be positive"):
        PythonCode(max_bytes=0)


def test_tests_and_bundled_files_are_left_out() -> None:
    keys = [key for _, key, _ in PythonCode(packages=("numpy",), max_bytes=1000).files()]
    assert "numpy/__init__.py" in keys and "json/decoder.py" in keys
    parts = {part for key in keys for part in key.split("/")[:-1]}
    assert not parts & {"test", "tests", "site-packages", "__pycache__"}
    assert len(set(keys)) == len(keys) and not any(os.sep != "/" and os.sep in key for key in keys)
