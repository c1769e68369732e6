"""The report of augmentation: shares, reasons, n-grams, examples with their changes marked; offline and repeatable."""

from __future__ import annotations

import re

import pytest

from data.augment.reorder import Reorder
from data.augment.report import Technique, gather, side_by_side, write_report
from data.augment.stage import Augment
from data.build import build_dataset
from data.document import Document
from data.heldout import HeldOut
from tests.data.augment.cases import make_config


def test_the_report_of_a_build_tells_of_every_technique(tmp_path):
    dataset = build_dataset(make_config(tmp_path / "set"))
    found = gather(dataset)
    assert set(found) == {"reorder", "paraphrase"}
    page = write_report(dataset).read_text(encoding="utf-8")
    for name, one in found.items():
        assert f"{one.kept:,} of {one.tried:,} copies kept" in page and name in page
        assert sum(one.reasons.values()) + one.kept == one.tried > 10
    assert "empty_text" in page and "<mark>" in page and page.count("<details open>") == 20
    assert not re.findall(r'(?:src|href)="(?!#|data:)|<script', page), "nothing from outside"
    assert write_report(dataset).read_text(encoding="utf-8") == page


def test_a_dataset_without_copies_is_one_line(tmp_path):
    dataset = build_dataset(make_config(tmp_path, stages=(HeldOut(fraction=0.2),)))
    with pytest.raises(ValueError, match="no document was augmented"):
        write_report(dataset)
    stages = (HeldOut(fraction=0.2), Augment(technique=Reorder(), factor=1.0))
    dataset = build_dataset(make_config(tmp_path, stages=stages))
    with pytest.raises(ValueError, match="no document was augmented"):
        write_report(dataset)


def test_changes_are_marked_on_both_sides_and_html_is_escaped():
    html = side_by_side("a~b", "the old <b> gate", "the new <b> gate")
    assert "<mark>old </mark>" in html and "<mark>new </mark>" in html and "&lt;b&gt;" in html


def test_new_ngrams_are_those_that_no_parent_has():
    one = Technique()
    scores = {"similarity": 0.5, "length_ratio": 1.0}
    for name, parent, copy in (("a", "x y z", "x z y"), ("b", "z y", "y w")):
        one.add(
            Document(id=name, text=parent, source="s"), Document(id=name + "~", text=copy, source="s", scores=scores)
        )
    assert one.ngrams() == [(1, 3, 1, 1 / 3), (2, 3, 2, 2 / 3), (3, 1, 1, 1.0)]
