"""The stage of augmentation over a real build: lineage, books, held-out documents, budget, determinism, kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from data.augment.attempts import attempt
from data.augment.gates import Gates
from data.augment.plan import LINEAGE, tokens_of
from data.augment.reorder import Reorder
from data.augment.stage import Augment
from data.build import build_dataset, document_shards
from data.document import Document, Drop, Dropped
from data.engine import LocalPool
from data.heldout import HeldOut
from data.manifest import read_manifest
from data.stage import Counts
from data.tables import read_documents, read_dropped
from tests.data.augment.cases import EVERYTHING, Deadly, Stories, check_poisoned, make_config, poisoned
from tests.data.build_cases import file_hashes


def kept(dataset: Path) -> list[Document]:
    return [document for path in document_shards(dataset) for document in read_documents(path)]


def rejected(dataset: Path) -> list[Dropped]:
    return [row for path in sorted((dataset / "dropped").glob("*.parquet")) for row in read_dropped(path)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return build_dataset(make_config(tmp_path_factory.mktemp("augmented") / "one"))


def test_no_copy_is_held_out_and_none_has_a_parent_that_is(dataset):
    documents = {document.id: document for document in kept(dataset)}
    heldout = {name for name, document in documents.items() if document.meta["split"] == "heldout"}
    copies = [document for document in documents.values() if LINEAGE in document.meta]
    assert heldout and len(copies) > 20
    assert not [copy.id for copy in copies if copy.meta["split"] != "train"]
    assert not heldout & {copy.meta[LINEAGE]["parent"] for copy in copies}
    assert not heldout & {copy.id for copy in copies}
    texts = {documents[name].text for name in heldout}
    assert not [copy.id for copy in copies if copy.text in texts]


def test_every_copy_says_where_it_comes_from_and_stands_behind_its_parent(dataset):
    documents = kept(dataset)
    names = [document.id for document in documents]
    assert len(set(names)) == len(names)
    parent = None
    for document in documents:
        lineage = document.meta.get(LINEAGE)
        if lineage is None:
            parent = document
            continue
        assert lineage["parent"] == parent.id and lineage["technique"] in ("reorder", "paraphrase")
        assert (lineage["technique"] == "paraphrase") == (lineage.get("style") in ("simple", "encyclopaedic"))
        assert document.source == parent.source and document.meta["group"] == parent.meta["group"]
        assert 0.3 <= document.scores["similarity"] <= 0.98 and document.text != parent.text
        again = attempt_again(parent, lineage)
        if again is not None:
            assert again == document.text, "a copy is a function of its parent, the settings and the seed"


def attempt_again(parent: Document, lineage: dict) -> str | None:
    from data.augment.technique import Request

    return Reorder().rewrite(Request(parent.text, lineage["seed"])) if lineage["technique"] == "reorder" else None


def test_the_books_balance_and_rejections_have_reasons(dataset):
    stages = [stage for stage in read_manifest(dataset)["stages"] if stage["name"].startswith("augment")]
    for stage in stages:
        counts = stage["counts"]
        assert counts["kept"] + counts["dropped"] == counts["read"] + counts["created"] and counts["created"] > 0
    reasons = Counter(row.drop.reason for row in rejected(dataset) if row.step == "augment")
    assert reasons["empty_text"] == 3, "two empty training documents, one of them twice: " + str(reasons)


def test_workers_and_chunks_do_not_change_the_documents(dataset, tmp_path):
    expected = file_hashes(dataset / "documents")
    for workers in (2, 4):
        again = build_dataset(make_config(tmp_path / f"workers{workers}", workers=workers))
        assert file_hashes(again / "documents") == expected
    stages = make_config(tmp_path).stages
    from dataclasses import replace

    chunks = (stages[0], replace(stages[1], chunk=100), replace(stages[2], chunk=1))
    assert file_hashes(build_dataset(make_config(tmp_path / "chunks", stages=chunks)) / "documents") == expected


def test_a_build_that_is_killed_goes_on_and_gives_the_same_files(dataset, tmp_path):
    target = tmp_path / "killed"
    kills = 0
    for wait in (1.2, 1.6, 2.0):
        process = subprocess.Popen([sys.executable, "-m", "tests.data.augment.cases", str(target), "1", "0.05"])
        until = time.monotonic() + 60
        while not list(target.glob("stages/augment.2-*.partial/scratch/attempts/*/*.parquet")):
            if process.poll() is not None or time.monotonic() > until:
                break
            time.sleep(0.02)
        time.sleep(wait / 10)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills
    build_dataset(make_config(target))
    assert file_hashes(target) == file_hashes(dataset)


@pytest.mark.parametrize("where", [[(1, 6)], [(0, 0), (0, 3), (2, 11)]])
def test_documents_that_kill_a_rule_get_no_copies_and_nothing_else_is_lost(where, tmp_path):
    inputs, asked = poisoned(tmp_path / "in", where), tmp_path / "asked"
    asked.mkdir()
    stage = Augment(technique=Deadly(asked=asked), factor=3.0, chunk=4, gates=EVERYTHING)
    with LocalPool(workers=2).session() as engine:
        counts = stage.run(inputs, tmp_path / "out", engine)
    check_poisoned(tmp_path / "out", counts, asked, where)


def test_a_model_that_a_document_kills_goes_on_without_it_when_the_driver_is_started_again(tmp_path):
    where = [(1, 6)]
    inputs, asked = poisoned(tmp_path / "in", where), tmp_path / "asked"
    asked.mkdir()
    script = (
        "from pathlib import Path; from data.augment.stage import Augment; from data.engine import LocalPool\n"
        "from tests.data.augment.cases import EVERYTHING, Deadly\n"
        f"technique = Deadly(asked=Path({str(asked)!r}), in_driver=True)\n"
        "stage = Augment(technique=technique, factor=3.0, chunk=4, gates=EVERYTHING)\n"
        "with LocalPool(workers=1).session() as engine:\n"
        f"    print(stage.run([Path(p) for p in {[str(path) for path in inputs]!r}], Path({str(tmp_path / 'out')!r}), "
        "engine))\n"
    )
    ends = []
    while not ends or (ends[-1].returncode == -signal.SIGKILL and len(ends) < 9):
        ends.append(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True))
    assert ends[-1].returncode == 0 and len(ends) == 5, ends[-1].stderr
    counts = eval(ends[-1].stdout.splitlines()[-1], {"Counts": Counts})
    check_poisoned(tmp_path / "out", counts, asked, where)


def test_the_token_budget_is_never_passed(tmp_path):
    budget = 2_000
    stages = (HeldOut(fraction=0.2), Augment(technique=Reorder(), factor=3.0, token_budget=budget))
    documents = kept(build_dataset(make_config(tmp_path, stages=stages)))
    spent = sum(tokens_of(document.text) for document in documents if LINEAGE in document.meta)
    assert 0.6 * budget < spent <= budget


def test_a_factor_of_two_and_a_half_makes_one_or_two_copies(tmp_path):
    stages = (HeldOut(fraction=0.2), Augment(technique=Reorder(), factors=(("stories", 2.5),)))
    dataset = build_dataset(make_config(tmp_path, sources=(Stories(documents_a_shard=40),), stages=stages))
    attempts = [d for d in kept(dataset) if LINEAGE in d.meta] + [row.document for row in rejected(dataset)]
    counts = Counter(document.meta[LINEAGE]["parent"] for document in attempts)
    assert set(counts.values()) == {1, 2}
    assert 0.3 < sum(count == 2 for count in counts.values()) / len(counts) < 0.7


def test_settings_and_orders_that_make_no_sense_are_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"factor of factor is 0\.5: expected 1\.0"):
        Augment(technique=Reorder(), factor=0.5)
    with pytest.raises(ValueError, match="sources are stories"):
        make_config(tmp_path, stages=(HeldOut(), Augment(technique=Reorder(), factors=(("books", 2.0),))))
    with pytest.raises(ValueError, match="put HeldOut"):
        build_dataset(make_config(tmp_path, stages=(Augment(technique=Reorder(), factor=2.0),)))


def test_what_a_technique_says_no_to_is_a_counted_rejection():
    parent = Document(id="a", text="word " * 30, source="s")

    def none(requests):
        return [Drop("model_gave_nothing") for _ in requests]

    from data.augment.attempts import Family

    rows = attempt([Family(parent, [(0, 7)])], none, Gates(), technique="t", model="m", longest=1000)
    assert [(row.drop.reason, row.drop.partner, row.document.text) for row in rows] == [("model_gave_nothing", "a", "")]
    rows = attempt([Family(parent, [(0, 7)])], none, Gates(), technique="t", model="m", longest=10)
    assert [row.drop.reason for row in rows] == ["too_long_to_augment"]
