"""Repeated lines and paragraphs."""

from __future__ import annotations

import json

import pytest

from data.dedup.lines import LineDedup
from data.dedup.rows import SurvivorPolicy
from data.dedup.verdicts import Alarms
from data.document import Document
from data.engine import LocalPool
from tests.data.dedup.helpers import dropped, kept, tree_bytes, write_shards

ENGINE = LocalPool(workers=1)
MENU = "Home | About us | Contact | Sign in to your account"
NOTICE = "All rights reserved by the owners of this page 2024"


def pages(count: int = 12) -> list[Document]:
    documents = [
        Document(
            id=f"p{n:02d}", text=f"{MENU}\nText of page number {n}, which is its own.\n  {NOTICE} \nEnd.", source="web"
        )
        for n in range(count)
    ]
    return [*documents, Document(id="only", text=f"{MENU}\n{NOTICE}", source="web")]


def test_repeated_lines_go_everywhere_but_in_the_first_document(tmp_path):
    documents = pages()
    counts = LineDedup(min_documents=5, policy=SurvivorPolicy(longest=False)).run(
        write_shards(tmp_path / "in", documents), tmp_path / "out", ENGINE
    )
    after = {document.id: document for document in kept(tmp_path / "out")}
    assert counts.balanced and after["p11"].text == "Text of page number 11, which is its own.\nEnd."
    assert after["p11"].meta["repeated_lines"] == 2
    owners = {line: [d.id for d in after.values() if line in d.text] for line in (MENU, NOTICE)}
    assert owners == {MENU: ["only"], NOTICE: ["only"]}  # "only" < "p00"
    report = json.loads((tmp_path / "out" / "dedup.json").read_text())
    assert {row["text"]: row["documents"] for row in report["most_frequent"]} == {MENU: 13, NOTICE: 13}


def test_without_keep_first_a_document_of_boilerplate_is_dropped(tmp_path):
    LineDedup(min_documents=5, keep_first=False).run(write_shards(tmp_path / "in", pages()), tmp_path / "out", ENGINE)
    assert [(row.document.id, row.drop.reason, row.drop.value) for row in dropped(tmp_path / "out")] == [
        ("only", "repeated_lines", 0)
    ]


@pytest.mark.parametrize(
    "settings", [{"allow": (MENU, NOTICE)}, {"min_chars": 60}, {"min_documents": 14}, {"unit": "paragraph"}]
)
def test_allowed_short_rare_lines_and_other_units_stay(tmp_path, settings):
    stage = LineDedup(**{"min_documents": 5, **settings})
    stage.run(write_shards(tmp_path / "in", pages()), tmp_path / "out", ENGINE)
    assert [d.text for d in kept(tmp_path / "out")] == [d.text for d in pages()]


def test_paragraphs(tmp_path):
    documents = [
        Document(id=f"d{n}", text=f"{MENU}\n{NOTICE}\n\nOwn text {n}.\n\n\nMore of {n}.", source="a") for n in range(6)
    ]
    LineDedup(unit="paragraph", min_documents=3, keep_first=False).run(
        write_shards(tmp_path / "in", documents), tmp_path / "out", ENGINE
    )
    assert [d.text for d in kept(tmp_path / "out")] == [f"Own text {n}.\n\n\nMore of {n}." for n in range(6)]


def test_same_bytes_for_one_and_two_workers(tmp_path):
    paths = write_shards(tmp_path / "in", pages(), shards=3)
    stage = LineDedup(min_documents=5, alarms=Alarms(max_source_loss=1.0))
    for workers in (1, 2):
        with LocalPool(workers=workers).session() as engine:
            stage.run(paths, tmp_path / f"out{workers}", engine)
    assert tree_bytes(tmp_path / "out1") == tree_bytes(tmp_path / "out2")
