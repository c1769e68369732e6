"""HeldOut: the side of a group is decided by its name alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.document import Document
from data.engine import LocalPool
from data.heldout import HeldOut
from data.tables import read_documents, write_documents


def make_documents(count: int, groups: int, source: str = "s") -> list[Document]:
    return [
        Document(id=f"{source}:{i}", text="x", source=source, meta={"group": f"g{i % groups}"}) for i in range(count)
    ]


def run(stage: HeldOut, documents: list[Document], folder: Path) -> list[Document]:
    folder.mkdir()
    write_documents(folder / "in.parquet", documents)
    counts = stage.run([folder / "in.parquet"], folder / "out", LocalPool(workers=1))
    assert counts.read == counts.kept == len(documents) and counts.dropped == counts.created == 0
    return list(read_documents(folder / "out" / "kept" / "00000.parquet"))


def test_a_group_is_on_one_side_in_every_source(tmp_path: Path) -> None:
    found = run(HeldOut(fraction=0.3), make_documents(200, 20) + make_documents(200, 20, "t"), tmp_path / "a")
    sides: dict[str, set[str]] = {}
    for document in found:
        sides.setdefault(document.meta["group"], set()).add(document.meta["split"])
    assert all(len(side) == 1 for side in sides.values())
    assert {side for both in sides.values() for side in both} == {"train", "heldout"}


def test_a_larger_corpus_and_a_larger_fraction_move_nothing_back(tmp_path: Path) -> None:
    def heldout(stage: HeldOut, documents: list[Document]) -> set[str]:
        return {document.id for document in documents if stage.split(document) == "heldout"}

    small, large = make_documents(500, 100), make_documents(2000, 100)
    assert heldout(HeldOut(fraction=0.1), small) == heldout(HeldOut(fraction=0.1), large) & {d.id for d in small}
    assert heldout(HeldOut(fraction=0.1), large) < heldout(HeldOut(fraction=0.2), large)
    assert heldout(HeldOut(fraction=0.2), large) != heldout(HeldOut(fraction=0.2, seed=1), large)


def test_the_fraction_is_met_over_many_groups() -> None:
    stage = HeldOut(fraction=0.05)
    chosen = sum(stage.split(Document(id=f"d{i}", text="", source="s")) == "heldout" for i in range(20_000))
    assert abs(chosen / 20_000 - 0.05) < 0.005  # three standard deviations


def test_one_sided_splits_and_bad_fractions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"all 10 documents are train: .* another seed than 0"):
        run(HeldOut(fraction=1e-6), make_documents(10, 1), tmp_path / "a")
    with pytest.raises(ValueError, match="fraction must lie between 0 and 1"):
        HeldOut(fraction=0.0)
