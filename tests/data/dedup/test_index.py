"""The saved index: incremental equals from-scratch, other parameters and damage are refused; NearIndex."""

from __future__ import annotations

import random
import shutil

import pytest

from data.dedup.minhash import MinHasher
from data.dedup.near import NearDedup
from data.dedup.near_index import NearIndex
from data.dedup.rows import SurvivorPolicy
from data.dedup.shingles import Shingles
from data.dedup.verdicts import Alarms
from data.document import Document
from data.engine import LocalPool
from tests.data.dedup.corpora import planted_copy
from tests.data.dedup.helpers import dropped, kept, write_shards

ENGINE = LocalPool(workers=1)
LOOSE = Alarms(max_source_loss=1.0, max_cluster=None)


def batches() -> tuple[list[Document], list[Document], list[Document]]:
    """Three batches whose families run through all of them."""
    draw = random.Random(11)
    documents: list[Document] = []
    for family in range(80):
        base = [f"w{draw.randrange(2000)}" for _ in range(draw.randrange(40, 120))]
        for copy in range(5):
            base = planted_copy(base, draw.choice([0.7, 0.85, 0.95]), draw)
            documents.append(Document(id=f"f{family}c{copy}", text=" ".join(base), source="new"))
    draw.shuffle(documents)
    return documents[:150], documents[150:280], documents[280:]


def test_incremental_equals_from_scratch_on_the_union(tmp_path):
    parts = batches()
    index = None
    removed, survivors = set(), set()
    for number, part in enumerate(parts):
        stage = NearDedup(alarms=LOOSE, save_index=True, index=None if index is None else str(index))
        out = tmp_path / f"out{number}"
        stage.run(write_shards(tmp_path / f"in{number}", part), out, ENGINE)
        index = out / "index"
        survivors |= {document.id for document in kept(out)}
        for row in dropped(out):
            removed.add(row.document.id)
            assert row.drop.partner in survivors
    shutil.rmtree(tmp_path / "in0")  # the old text is not read again
    union = [Document(id=d.id, text=d.text, source=f"batch{number}") for number, part in enumerate(parts) for d in part]
    random.Random(0).shuffle(union)
    policy = SurvivorPolicy(sources=("batch0", "batch1", "batch2"))
    NearDedup(alarms=LOOSE, policy=policy).run(write_shards(tmp_path / "union", union, 3), tmp_path / "all", ENGINE)
    assert {row.document.id for row in dropped(tmp_path / "all")} == removed
    assert len(removed) > 50

    loaded = NearIndex.load(index, NearDedup())
    assert len(loaded) == len(survivors)
    gone = dropped(tmp_path / "all")[0]
    assert loaded.query(gone.document.text)[0] in survivors


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    NearDedup(alarms=LOOSE, save_index=True).run(write_shards(folder / "in", batches()[0]), folder / "out", ENGINE)
    return folder / "out" / "index"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.7}, "made with bands="),
        ({"shingles": Shingles(size=4)}, "shingle_size=5, the stage has 4"),
        ({"minhash": MinHasher(seed=2)}, "seed=1, the stage has 2"),
        ({"minhash": MinHasher(bits=64)}, "bits=32, the stage has 64"),
    ],
)
def test_other_parameters_are_refused(tmp_path, saved, settings, message):
    stage = NearDedup(index=str(saved), **settings)
    with pytest.raises(ValueError, match=message):
        stage.run(write_shards(tmp_path / "in", batches()[1]), tmp_path / "out", ENGINE)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("00000/hashes.npy", "cut", "the index is cut short"),
        ("00001/signatures.npy", "flip", "the index is damaged"),
        ("00000/rows.npy", "remove", "missing: the index is cut short"),
        ("manifest.json", "cut", "not the manifest of a dedup index, or cut short"),
        ("manifest.json", "remove", "no dedup index here"),
    ],
)
def test_a_damaged_index_is_a_clear_error(tmp_path, saved, name, damage, message):
    index = tmp_path / "index"
    shutil.copytree(saved, index)
    data = (index / name).read_bytes()
    if damage == "remove":
        (index / name).unlink()
    else:
        changed = data[: len(data) // 2] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1])
        (index / name).write_bytes(changed)
    stage = NearDedup(index=str(index))
    with pytest.raises(ValueError, match=message):
        stage.run(write_shards(tmp_path / "in", batches()[1]), tmp_path / "out", ENGINE)


def test_an_id_of_the_old_dataset_cannot_come_again(tmp_path, saved):
    old = NearIndex.load(saved, NearDedup())
    name = next(d.id for d in batches()[0] if d.id in old)
    documents = [Document(id=name, text="quite another text than before it was", source="a")]
    with pytest.raises(ValueError, match=f"document id '{name}' occurs more than once"):
        NearDedup(index=str(saved)).run(write_shards(tmp_path / "in", documents, 1), tmp_path / "out", ENGINE)


def test_the_stream_example_removes_exactly_the_exact_duplicate():
    """The example that the project began with, in five lines."""
    docs = [
        "The quick brown fox jumps over the lazy dog",
        "The quick brown fox jumps over the lazy dog",
        "The fast brown fox leaps over the lazy dog",
        "Completely different content here",
    ]
    unique, index = [], NearIndex(threshold=0.8, num_perm=128, shingles=Shingles(size=1))
    for i, doc in enumerate(docs):
        if not index.query(doc):
            index.insert(f"doc_{i}", doc)
            unique.append(doc)
    assert unique == [docs[0], docs[2], docs[3]]
    assert index.query_similarities("the quick brown fox jumps over one lazy dog") == [("doc_0", 8 / 9)]
    assert "doc_0" in index and "doc_1" not in index and len(index) == 3
    with pytest.raises(ValueError, match="'doc_0' is in the index already"):
        index.insert("doc_0", "x")
    assert index.query("") == []
