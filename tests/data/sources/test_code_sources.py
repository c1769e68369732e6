"""Stack Exchange dumps, Git repositories and notebooks."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from data.sources.git_repository import GitSource
from data.sources.grouping import Groups
from data.sources.html_text import html_to_text
from data.sources.licences import detect_licence
from data.sources.limits import ReadLimits
from data.sources.notebooks import NotebookFolder, notebook_text
from data.sources.source_code import dependency_order, language_of, marks_of
from data.sources.stack_exchange import StackExchangeSource
from tests.data.sources.helpers import read, reasons

# ---- Stack Exchange


@pytest.mark.real_data
def test_the_coffee_dump_becomes_its_questions_with_their_answers(real_data: Path) -> None:
    path = real_data / "stackexchange" / "coffee-Posts.xml"
    documents, drops = read(StackExchangeSource(name="se", paths=(str(path),), site="coffee.stackexchange.com"))
    assert len(documents) == 225 and reasons(drops) == {"tag_wiki": 20, "tag_wiki_excerpt": 20}
    assert sum(d.meta["records"] for d in documents) + len(drops) == 592
    first = documents[0]
    assert first.id == "se:coffee-Posts.xml:1" and first.meta["tags"] == ["storage", "whole-bean"]
    assert first.text.startswith("# How should I store whole bean coffee?\n\nI just got a pound of microroasted")
    assert first.meta["licence"] == "CC-BY-SA-3.0" and first.meta["accepted"] == "24"
    for document in documents:
        assert (scores := document.meta.get("answer_scores", [])) == sorted(scores, reverse=True)
        assert document.text.count("## Answer (accepted)") <= 1 and "&lt;" not in document.text


ROWS = """<?xml version="1.0" encoding="utf-8"?>
<posts>
  <row Id="2" PostTypeId="2" ParentId="1" Score="1" CreationDate="2020-01-01" Body="&lt;p&gt;low&lt;/p&gt;" />
  <row Id="1" PostTypeId="1" AcceptedAnswerId="4" Score="5" CreationDate="2010-01-01" Title="Q" Tags="|a|b|"
  Body="&lt;pre&gt;&lt;code&gt;x = 1
&lt;/code&gt;&lt;/pre&gt;" />
  <row Id="3" PostTypeId="2" ParentId="1" Score="9" CreationDate="2012-01-01" Body="high" />
  <row Id="4" PostTypeId="2" ParentId="1" Score="1" CreationDate="2012-01-01" Body="accepted" />
  <row Id="5" PostTypeId="2" ParentId="77" Score="9" Body="orphan" />
  <row Id="6" PostTypeId="1" Score="0" Body="broken />
  <row PostTypeId="1" Body="no id" />
</posts>
""".replace("x = 1\n&", "x = 1&#xA;&").replace('|"\n', '|"')


def test_answers_are_ordered_and_faults_counted(tmp_path: Path) -> None:
    (tmp_path / "Posts.xml").write_text(ROWS)
    documents, drops = read(StackExchangeSource(name="se", paths=(str(tmp_path),)))
    assert len(documents) == 1
    assert (
        documents[0].text
        == "# Q\n\n```\nx = 1\n```\n\n## Answer\n\nhigh\n\n## Answer (accepted)\n\naccepted\n\n## Answer\n\nlow"
    )
    assert documents[0].meta["licence"] == "CC-BY-SA-4.0" and documents[0].meta["tags"] == ["a", "b"]
    assert reasons(drops) == {"question_missing": 1, "bad_xml": 1, "missing_attribute": 1}
    documents, drops = read(StackExchangeSource(name="se", paths=(str(tmp_path),), max_answers=1))
    assert documents[0].meta["answer_ids"] == ["3"] and reasons(drops)["beyond_max_answers"] == 2
    documents, drops = read(StackExchangeSource(name="se", paths=(str(tmp_path),), min_answers=4))
    assert not documents and reasons(drops)["too_few_answers"] == 1


def test_a_huge_row_is_skipped_without_being_held(tmp_path: Path) -> None:
    row = '<row Id="9" PostTypeId="1" Body="' + "x" * 3_000_000 + '" />\n'
    (tmp_path / "Posts.xml").write_text(ROWS.replace("</posts>", row + "</posts>"))
    documents, drops = read(
        StackExchangeSource(name="se", paths=(str(tmp_path),), limits=ReadLimits(max_record_bytes=1 << 20))
    )
    assert len(documents) == 1 and reasons(drops)["record_too_large"] == 1


def test_groups_come_back_whole_in_the_order_of_their_first_record() -> None:
    with Groups() as groups:
        for number in range(10_000):
            groups.put(f"g{number * 7919 % 13}", {"n": number})
        found = list(groups.groups(10**6))
    assert [name for name, _, _ in found][:3] == ["g0", "g2", "g4"] and sum(n for _, _, n in found) == 10_000
    assert all([r["n"] for r in rows] == sorted(r["n"] for r in rows) for _, rows, _ in found)


def test_html_of_posts_keeps_code_lists_quotes_and_tables() -> None:
    markup = """<h2>Title</h2><p>One &amp; <code>two()</code><br>three</p><pre class="lang-py"><code>if a &lt; b:
    pass</code></pre><ul><li>a</li><li>b<ol><li>c</li></ol></li></ul><blockquote><p>said</p></blockquote>
    <table><tr><th>h</th><td>1</td></tr></table><script>evil()</script>"""
    assert html_to_text(markup) == (
        "## Title\n\nOne & `two()`\nthree\n\n```py\nif a < b:\n    pass\n```\n\n- a\n- b\n\n  1. c\n\n> said\n\nh | 1"
    )
    assert html_to_text("") == html_to_text("<!-- -->") == "" and html_to_text("<<<>") == "<<<>"
    assert html_to_text("<div>" * 3000 + "deep" + "</div>" * 3000) in ("deep", "")


# ---- Git


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t.example", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "pkg").mkdir(parents=True)
    (root / "node_modules" / "x").mkdir(parents=True)
    files: dict[str, str | bytes] = {
        "LICENSE": "MIT License\n\nPermission is hereby granted, free of charge, to any person ... "
        "substantial portions of the Software.",
        "README.md": "# Project\n",
        "pkg/a.py": "from pkg import b\n\nprint(b.x)\n",
        "pkg/b.py": "x = 1\n",
        "pkg/gpl.py": "# SPDX-License-Identifier: GPL-3.0-only\ny = 2\n",
        "pkg/gen.py": "# Generated by the protocol buffer compiler.  DO NOT EDIT!\nz = 3\n",
        "app.min.js": "var a=1;" * 100,
        "node_modules/x/index.js": "module.exports = 1\n",
        "logo.png": b"\x89PNG\0\0",
        "huge.py": "# x\n" * 400_000,
        "tool": "#!/usr/bin/env python3\nprint(1)\n",
        "book.ipynb": json.dumps(
            {
                "cells": [
                    {"cell_type": "markdown", "source": ["# Hi"]},
                    {"cell_type": "code", "source": "1+1", "outputs": [{"text": "secret"}]},
                ]
            }
        ),
        "latin.py": "# café\nv = 1\n".encode("latin-1"),
        "bom.py": "\ufeffw = 4\n",
        "lfs.json": "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "data.weird": "?",
    }
    for name, content in files.items():
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (root / "loop").symlink_to(root)
    (root / "escape.py").symlink_to("/etc/passwd")
    git(tmp_path, "init", "-q", "-b", "main", str(root))
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "first")
    return root


def test_a_repository_gives_every_entry_once(repository: Path) -> None:
    source = GitSource(name="code", repositories=(str(repository),), leave_out=("vendored", "generated", "minified"))
    documents, drops = read(source)
    paths = {d.meta["path"]: d for d in documents}
    assert set(paths) == {
        "LICENSE",
        "README.md",
        "pkg/a.py",
        "pkg/b.py",
        "pkg/gpl.py",
        "tool",
        "book.ipynb",
        "latin.py",
        "bom.py",
    }
    assert reasons(drops) == {
        "generated": 1,
        "minified": 1,
        "vendored": 1,
        "binary": 1,
        "record_too_large": 1,
        "symlink": 2,
        "lfs_pointer": 1,
        "unknown_language": 1,
    }
    assert len(documents) + len(drops) == len(git(repository, "ls-files").split())
    assert paths["pkg/a.py"].meta["licence"] == "MIT" and paths["pkg/gpl.py"].meta["licence"] == "GPL-3.0-only"
    assert paths["pkg/a.py"].text == "from pkg import b\n\nprint(b.x)\n" and paths["latin.py"].text.startswith("# café")
    assert paths["bom.py"].text == "w = 4\n"
    assert paths["tool"].meta["programming_language"] == "Python"
    assert paths["book.ipynb"].text == "# Hi\n\n```python\n1+1\n```"
    assert paths["pkg/b.py"].id == "code:project:pkg/b.py"
    commit = git(repository, "rev-parse", "HEAD").strip()
    assert paths["pkg/b.py"].meta["commit"] == commit and source.inputs_key() == [[str(repository), commit]]


def test_an_older_commit_and_a_clone_by_url(repository: Path, tmp_path: Path) -> None:
    first = git(repository, "rev-parse", "HEAD").strip()
    (repository / "pkg" / "b.py").write_text("x = 2\n")
    git(repository, "commit", "-q", "-am", "second")
    old, _ = read(GitSource(name="c", repositories=(str(repository),), commit=first, languages=("Python",)))
    assert next(d for d in old if d.meta["path"] == "pkg/b.py").text == "x = 1\n"
    source = GitSource(
        name="c", repositories=(f"file://{repository}",), languages=("Python",), cache=str(tmp_path / "cache")
    )
    new, drops = read(source)
    assert next(d for d in new if d.meta["path"] == "pkg/b.py").text == "x = 2\n" and "other_language" in reasons(drops)
    assert new[0].meta["repository"] == f"file://{repository}"


def test_a_whole_repository_puts_what_is_imported_first(repository: Path) -> None:
    documents, _ = read(
        GitSource(name="c", repositories=(str(repository),), layout="repository", languages=("Python", "Markdown"))
    )
    (document,) = documents
    names = document.meta["files"]
    assert names[0] == "README.md" and names.index("pkg/b.py") < names.index("pkg/a.py")
    assert document.meta["licence"] == "GPL-3.0-only AND MIT" and document.meta["repository_licence"] == "MIT"
    assert "# file: pkg/b.py\nx = 1\n" in document.text and document.meta["records"] == len(names)
    parts, _ = read(
        GitSource(
            name="c", repositories=(str(repository),), layout="repository", languages=("Python",), max_document_bytes=60
        )
    )
    assert len(parts) > 1 and sum(d.meta["records"] for d in parts) == 6
    few = GitSource(
        name="c",
        repositories=(str(repository),),
        layout="repository",
        languages=("Python",),
        max_repository_bytes=60,
    )
    parts, drops = read(few)
    assert sum(d.meta["records"] for d in parts) + reasons(drops)["beyond_max_repository_bytes"] == 6
    assert sum(len(d.text) for d in parts) < 200 and parts


def test_a_tree_that_stands_for_billions_of_files_is_one_drop(tmp_path: Path) -> None:
    """Twelve trees, each ten times in the next: 10^12 paths in 12 objects."""
    git(tmp_path, "init", "-q", "-b", "main", ".")

    def put(kind: str, *arguments: str, text: str) -> str:
        command = ["git", "-C", str(tmp_path), kind, *arguments]
        return subprocess.run(command, input=text, check=True, capture_output=True, text=True).stdout.strip()

    entry = "100644 blob " + put("hash-object", "-w", "--stdin", text="x = 1\n")
    for _ in range(12):
        entry = "040000 tree " + put("mktree", text="".join(f"{entry}\td{number}\n" for number in range(10)))
    commit = git(tmp_path, "commit-tree", "-m", "bomb", entry.split()[2]).strip()
    git(tmp_path, "update-ref", "refs/heads/main", commit)
    documents, drops = read(GitSource(name="c", repositories=(str(tmp_path),), max_files=20_000))
    assert not documents and reasons(drops) == {"expands_too_far": 1}


def test_what_is_no_repository_is_refused_in_a_sentence(tmp_path: Path) -> None:
    for repositories, commit in (((str(tmp_path / "none"),), "HEAD"), ((str(tmp_path),), "HEAD")):
        with pytest.raises(ValueError, match="repository"):
            GitSource(name="c", repositories=repositories, commit=commit).inputs_key()
    with pytest.raises(ValueError, match="layout"):
        GitSource(name="c", repositories=(), layout="tree")


def test_hooks_and_settings_of_a_hostile_repository_do_not_run(repository: Path) -> None:
    mark = repository / "ran"
    script = repository / ".git" / "evil.sh"
    script.write_text(f"#!/bin/sh\ntouch {mark}\n")
    script.chmod(0o755)
    git(repository, "config", "core.fsmonitor", str(script))
    git(repository, "config", "core.pager", str(script))
    git(repository, "config", "core.sshCommand", str(script))
    os.link(script, repository / ".git" / "hooks" / "post-checkout")
    assert read(GitSource(name="c", repositories=(str(repository),)))[0] and not mark.exists()


def test_a_missing_object_is_not_fetched_by_what_a_hostile_repository_names(repository: Path, tmp_path: Path) -> None:
    """A promisor remote is asked for missing objects, with a command that the repository's own settings name."""
    sha = git(repository, "rev-parse", "HEAD:pkg/b.py").strip()
    git(tmp_path, "clone", "-q", "--bare", str(repository), str(tmp_path / "elsewhere"))
    (repository / ".git" / "objects" / sha[:2] / sha[2:]).unlink()
    mark = tmp_path / "ran"
    script = repository / ".git" / "evil.sh"
    script.write_text(f'#!/bin/sh\ntouch {mark}\nexec git-upload-pack "$@"\n')
    script.chmod(0o755)
    settings = {
        "core.repositoryFormatVersion": "1",
        "extensions.partialClone": "origin",
        "remote.origin.url": str(tmp_path / "elsewhere"),
        "remote.origin.promisor": "true",
        "remote.origin.uploadPack": str(script),
    }
    for name, value in settings.items():
        git(repository, "config", name, value)
    documents, drops = read(GitSource(name="c", repositories=(str(repository),), languages=("Python",)))
    assert not mark.exists() and len(documents) == 5
    assert [d.document.meta["path"] for d in drops if d.drop.reason == "corrupt_record"] == ["pkg/b.py"]


def test_one_dead_address_costs_that_repository_only(repository: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    dead = f"file://{tmp_path}/dead.git"
    source = GitSource(name="c", repositories=(dead, str(repository)), cache=str(cache))
    documents, drops = read(source)
    assert documents and reasons(drops)["fetch_failed"] == 1 and drops[0].document.id == "c:dead"
    assert [known for _, known in source.inputs_key()] == [None, git(repository, "rev-parse", "HEAD").strip()]
    assert not list(cache.iterdir())
    with pytest.raises(ValueError, match="git fetch failed"):
        GitSource(name="c", repositories=(dead,), cache=str(cache)).inputs_key()


def test_languages_marks_order_and_licences() -> None:
    assert language_of("a/B.RS") == "Rust" and language_of("x.h", "class A {};") == "C++" and language_of("x.h") == "C"
    assert (
        language_of("Makefile") == "Makefile"
        and language_of("run", "#!/bin/bash\n") == "Shell"
        and not language_of("x.qq")
    )
    assert marks_of("a/vendor/x.py", "x", "Python") == ["vendored"] and marks_of("x.py", "x = 1\n", "Python") == []
    assert marks_of("x.js", "a" * 6000, "JavaScript") == ["minified"]
    assert dependency_order({"a": ["b"], "b": ["c"], "c": ["a"], "README": []}) == ["README", "c", "b", "a"]
    assert (
        detect_licence("Apache License\nVersion 2.0, January 2004") == "Apache-2.0" and detect_licence("none") is None
    )
    bsd = "Redistribution and use in source and binary forms, with or without"
    assert detect_licence(bsd) == "BSD-2-Clause"
    assert detect_licence(bsd + " ... endorse or promote products derived") == "BSD-3-Clause"


# ---- notebooks


def test_notebooks_of_both_formats_and_broken_ones(tmp_path: Path) -> None:
    old = {
        "worksheets": [
            {"cells": [{"cell_type": "heading", "level": 2, "source": "T"}, {"cell_type": "code", "input": "x"}]}
        ]
    }
    assert notebook_text(json.dumps(old))[0] == "## T\n\n```python\nx\n```"
    julia = {
        "metadata": {"language_info": {"name": "julia"}},
        "cells": [{"cell_type": "code", "source": ["a\n", "b"]}, 3],
    }
    assert notebook_text(json.dumps(julia))[0] == "```julia\na\nb\n```"
    (tmp_path / "good.ipynb").write_text(json.dumps(julia))
    for number, bad in enumerate((b"{", b"[]", b'{"cells": 3}', b"[" * 100_000, b"\xff")):
        (tmp_path / f"bad{number}.ipynb").write_bytes(bad)
    documents, drops = read(NotebookFolder(name="n", paths=(str(tmp_path),)))
    assert len(documents) == 1 and reasons(drops) == {"bad_notebook": 5}
