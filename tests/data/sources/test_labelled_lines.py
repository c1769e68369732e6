"""Labelled lines of a package: by language, capped, with one line where something is missing."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from data.document import Document, Dropped
from data.sources.labelled_lines import LabelledLines


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LabelledLines:
    package = tmp_path / "labelled_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('its code is not run')")
    (package / "lines.txt").write_text("en\tone\nel\tένα\nno label\nen\ttwo\nen\tthree\n", encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return LabelledLines(name="few", package="labelled_package", file="lines.txt")


def read(source: LabelledLines) -> list[Document | Dropped]:
    return [record for shard in source.shards() for record in source.documents(shard)]


def test_lines_become_documents_with_their_language(source: LabelledLines) -> None:
    records = read(source)
    kept = [record for record in records if isinstance(record, Document)]
    assert [(d.text, d.meta["language"]) for d in kept] == [
        ("one", "en"), ("ένα", "el"), ("two", "en"), ("three", "en"),
    ]  # fmt: skip
    assert [record.drop.reason for record in records if isinstance(record, Dropped)] == ["no_language"]
    capped = read(replace(source, languages=("en",), max_lines=2))
    assert [record.text for record in capped if isinstance(record, Document)] == ["one", "two"]


def test_what_is_missing_is_one_line(source: LabelledLines) -> None:
    for broken, message in (
        (replace(source, languages=("en", "xx")), "no text in xx"),
        (replace(source, file="other.txt"), "other.txt is not there"),
        (replace(source, package="no_such_package"), "'no_such_package' is not installed"),
    ):
        with pytest.raises(ValueError, match=message):
            read(broken)
