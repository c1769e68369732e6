"""Decontamination against a plain-Python statement of what it must do."""

from __future__ import annotations

import json
import random

import pytest

from data.dedup.decontaminate import Decontaminate
from data.dedup.evaluation_sets import EvaluationSet
from data.dedup.verdicts import Alarms
from data.document import Document
from data.engine import LocalPool
from tests.data.dedup.helpers import dropped, kept, shingle_set, tree_bytes, write_shards

ENGINE = LocalPool(workers=1)
LOOSE = Alarms(max_source_loss=1.0)


def corpus(seed: int = 0) -> list[Document]:
    """60 training and 20 held-out documents of random words; some quote each other, all share a header."""
    draw = random.Random(seed)
    header = " ".join(f"header{place}" for place in range(15))
    bodies = [[f"w{draw.randrange(5000)}" for _ in range(120)] for _ in range(80)]
    for target, origin, length in ((0, 60, 13), (1, 61, 12), (2, 62, 40), (3, 60, 20), (60, 4, 13)):
        bodies[target][30 : 30 + length] = bodies[origin][50 : 50 + length]
    return [
        Document(
            id=f"doc{place:03d}",
            text=f"{header}. " + ", ".join(body),
            source="a",
            meta={"split": "heldout" if place >= 60 else "train"},
        )
        for place, body in enumerate(bodies)
    ]


def test_drops_exactly_the_documents_that_share_thirteen_words(tmp_path):
    documents = corpus()
    Decontaminate(alarms=LOOSE).run(write_shards(tmp_path / "in", documents), tmp_path / "out", ENGINE)
    grams = {document.id: shingle_set(document.text, 13) for document in documents}
    frequency: dict = {}
    for found in grams.values():
        for gram in found:
            frequency[gram] = frequency.get(gram, 0) + 1
    rare = {gram for gram, count in frequency.items() if count <= 20}
    held = {d.id: grams[d.id] & rare for d in documents if d.meta["split"] == "heldout"}
    expected = {
        d.id for d in documents if d.meta["split"] == "train" and any(grams[d.id] & theirs for theirs in held.values())
    }
    gone = {row.document.id: row.drop for row in dropped(tmp_path / "out")}
    assert set(gone) == expected == {"doc000", "doc002", "doc003", "doc004"}
    for name, drop in gone.items():
        gram = tuple(drop.value.lower().replace(",", "").split())
        assert drop.reason == "heldout_overlap" and drop.threshold == 13
        assert gram in grams[name] and gram in held[drop.partner]
    assert [d.id for d in kept(tmp_path / "out")] == [d.id for d in documents if d.id not in gone]


def test_cut_leaves_no_shared_ngram_and_all_other_words(tmp_path):
    documents = corpus()
    stage = Decontaminate(action="cut", min_words_left=70, alarms=LOOSE)
    counts = stage.run(write_shards(tmp_path / "in", documents), tmp_path / "out", ENGINE)
    after = {d.id: d for d in kept(tmp_path / "out")}
    assert counts.balanced and counts.dropped == 0
    assert [after[name].meta["decontaminated_words"] for name in ("doc000", "doc002", "doc003", "doc004")] == [
        13,
        40,
        20,
        13,
    ]
    second = Decontaminate(alarms=LOOSE).run(
        write_shards(tmp_path / "again", list(after.values())), tmp_path / "twice", ENGINE
    )
    assert second.dropped == 0
    before = documents[0].text.split()
    assert after["doc000"].text.split() == before[:45] + before[58:]


def test_frequent_ngrams_are_boilerplate(tmp_path):
    paths = write_shards(tmp_path / "in", corpus())
    counts = Decontaminate(max_document_frequency=79, alarms=LOOSE).run(paths, tmp_path / "few", ENGINE)
    assert counts.dropped == 4
    counts = Decontaminate(max_document_frequency=80, alarms=LOOSE).run(paths, tmp_path / "all", ENGINE)
    assert counts.dropped == 60  # the header of 15 words now counts


def test_evaluation_sets_count_as_held_out(tmp_path):
    documents = [d.with_meta(split="train") for d in corpus()]
    question = " ".join(documents[7].text.split()[40:60])
    path = tmp_path / "eval.jsonl"
    path.write_text(json.dumps({"question": question, "choices": ["a", "b"]}) + "\n", encoding="utf-8")
    sets = (EvaluationSet(name="quiz", path=str(path), fields=("question", "choices")),)
    stage = Decontaminate(evaluation=sets, alarms=LOOSE)
    stage.run(write_shards(tmp_path / "in", documents), tmp_path / "out", ENGINE)
    assert [(row.document.id, row.drop.partner) for row in dropped(tmp_path / "out")] == [("doc007", "quiz:0")]
    key = stage.inputs_key()
    path.write_text(json.dumps({"question": "other", "choices": []}) + "\n", encoding="utf-8")
    assert stage.inputs_key() != key


def test_same_bytes_for_every_worker_count(tmp_path):
    paths = write_shards(tmp_path / "in", corpus(), shards=4)
    outputs = []
    for workers in (1, 2, 4):
        out = tmp_path / f"out{workers}"
        with LocalPool(workers=workers).session() as engine:
            Decontaminate(alarms=LOOSE).run(paths, out, engine)
        outputs.append(tree_bytes(out))
    assert outputs[0] == outputs[1] == outputs[2]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("{bad", "e.jsonl", "line 1: not JSON"),
        ('{"text2": "x"}', "e.jsonl", "expected an object with 'text'"),
        ("x", "e.csv", "is none of .jsonl"),
    ],
)
def test_bad_evaluation_files_are_named(tmp_path, content, name, message):
    (tmp_path / name).write_text(content, encoding="utf-8")
    stage = Decontaminate(evaluation=(EvaluationSet(name="quiz", path=str(tmp_path / name)),))
    with pytest.raises(ValueError, match=message):
        stage.run(write_shards(tmp_path / "in", corpus()), tmp_path / "out", ENGINE)


def test_nothing_to_compare_with_is_an_error(tmp_path):
    paths = write_shards(tmp_path / "in", [d.with_meta(split="train") for d in corpus()])
    with pytest.raises(ValueError, match="put HeldOut before this stage"):
        Decontaminate().run(paths, tmp_path / "out", ENGINE)
