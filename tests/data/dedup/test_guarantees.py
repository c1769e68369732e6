"""What holds on any machine: worker counts, input order, kills, books, alarms, bad input."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise

import pytest

from data.dedup import near
from data.dedup.exact import ExactDedup
from data.dedup.near import NearDedup
from data.dedup.rows import SurvivorPolicy
from data.dedup.shingles import hash_shingles, unique_sorted
from data.dedup.verdicts import Alarms, DedupAlarm, Removal
from data.document import Document
from data.engine import LocalPool
from tests.data.dedup.corpora import planted_copy
from tests.data.dedup.helpers import dropped, kept, shingle_set, tree_bytes, write_shards

ENGINE = LocalPool(workers=1)
LOOSE = Alarms(max_source_loss=1.0, max_cluster=None)
POLICY = SurvivorPolicy(sources=("b", "a"))


def family_corpus(families: int = 60, seed: int = 1) -> list[Document]:
    """Families of texts that are copies of copies, exact and near, in three sources."""
    draw = random.Random(seed)
    documents = []
    for family in range(families):
        base = [f"w{draw.randrange(2000)}" for _ in range(draw.randrange(40, 150))]
        for copy in range(draw.randrange(1, 6)):
            base = planted_copy(base, draw.choice([0.6, 0.8, 0.9, 1.0]), draw)
            documents.append(Document(id=f"f{family}c{copy}", text=" ".join(base), source=draw.choice("abc")))
    draw.shuffle(documents)
    return documents


def stages():
    return [
        ExactDedup(policy=POLICY, alarms=LOOSE),
        NearDedup(policy=POLICY, alarms=LOOSE, save_index=True),
    ]


@pytest.mark.parametrize("stage", stages(), ids=lambda stage: stage.name)
def test_same_bytes_for_one_two_and_four_workers(tmp_path, stage):
    paths = write_shards(tmp_path / "in", family_corpus(), shards=5)
    outputs = []
    for workers in (1, 2, 4):
        out = tmp_path / f"out{workers}"
        with LocalPool(workers=workers).session() as engine:
            counts = stage.run(paths, out, engine)
        assert counts.balanced and counts.read == len(family_corpus())
        outputs.append(tree_bytes(out))
    assert outputs[0] == outputs[1] == outputs[2]
    assert any(name.startswith("dropped") for name in outputs[0]) and counts.dropped > 5


@pytest.mark.parametrize("stage", stages(), ids=lambda stage: stage.name)
def test_shuffled_input_in_other_shards_gives_the_same_sets(tmp_path, stage):
    documents = family_corpus()
    results = []
    for seed, shards in ((0, 1), (1, 3), (2, 7)):
        random.Random(seed).shuffle(documents)
        out = tmp_path / f"out{seed}"
        stage.run(write_shards(tmp_path / f"in{seed}", documents, shards), out, ENGINE)
        gone = {(row.document.id, row.drop.partner, row.drop.value) for row in dropped(out)}
        results.append((gone, {document.id for document in kept(out)}))
    assert results[0] == results[1] == results[2]


def test_components_by_rounds_give_the_same_bytes(tmp_path):
    paths = write_shards(tmp_path / "in", family_corpus(), shards=3)
    for name, above in (("one", 1 << 30), ("rounds", 0)):
        stage = NearDedup(policy=POLICY, alarms=LOOSE, label_in_rounds_above=above)
        stage.run(paths, tmp_path / name, ENGINE)
    assert tree_bytes(tmp_path / "one") == tree_bytes(tmp_path / "rounds")


def test_a_killed_run_goes_on_with_other_memory_and_verifies_nothing_twice(tmp_path, monkeypatch):
    paths = write_shards(tmp_path / "in", family_corpus(), shards=3)

    def stopped(*_):
        raise KeyboardInterrupt

    def run(name, **settings):
        stage = NearDedup(policy=POLICY, alarms=LOOSE, label_in_rounds_above=0, **settings)
        return stage.run(paths, tmp_path / name, ENGINE)

    expected = run("whole")
    with monkeypatch.context() as patch:
        patch.setattr(Removal, "run", stopped)
        for memory in (64 * 1024, 1 << 30):
            with pytest.raises(KeyboardInterrupt):
                run("killed", memory_bytes=memory)
        patch.setattr(near, "verify", stopped)
        patch.setattr(near, "star_edges", stopped)
        with pytest.raises(KeyboardInterrupt):
            run("killed", memory_bytes=64 * 1024)
        patch.undo()
        patch.setattr(near, "verify", stopped)
        assert run("killed", memory_bytes=1 << 30) == expected
    assert tree_bytes(tmp_path / "killed") == tree_bytes(tmp_path / "whole")


def test_tiny_memory_gives_the_same_bytes(tmp_path):
    """Ranges of a few hundred pairs instead of one: the memory setting never shows in the output."""
    paths = write_shards(tmp_path / "in", family_corpus(), shards=3)
    for name, memory in (("large", 1 << 30), ("small", 64 * 1024)):
        NearDedup(alarms=LOOSE, memory_bytes=memory).run(paths, tmp_path / name, ENGINE)
    assert tree_bytes(tmp_path / "large") == tree_bytes(tmp_path / "small")


def test_memory_too_small_for_one_group_is_an_error(tmp_path):
    text = " ".join(f"w{place}" for place in range(50))
    documents = [Document(id=f"d{n}", text=f"{text} tail{n % 40} more{n}", source="a") for n in range(300)]
    paths = write_shards(tmp_path / "in", documents)
    with pytest.raises(ValueError, match="raise memory_bytes"):
        NearDedup(alarms=LOOSE, memory_bytes=4096).run(paths, tmp_path / "out", ENGINE)


_RUN = """
import sys
from pathlib import Path
from data.engine import LocalPool
from tests.data.dedup.test_guarantees import stages
if __name__ == "__main__":
    inputs = sorted(Path(sys.argv[1]).glob("*.parquet"))
    stages()[int(sys.argv[3])].run(inputs, Path(sys.argv[2]), LocalPool(workers=1))
"""


@pytest.mark.parametrize("number", [0, 1], ids=["exact_dedup", "near_dedup"])
def test_killed_at_any_moment_and_run_again_gives_the_same_bytes(tmp_path, number):
    paths = write_shards(tmp_path / "in", family_corpus(), shards=8)
    stages()[number].run(paths, tmp_path / "whole", ENGINE)
    script, out = tmp_path / "run.py", tmp_path / "killed"
    script.write_text(_RUN, encoding="utf-8")
    command = [sys.executable, str(script), str(tmp_path / "in"), str(out), str(number)]
    kills = 0
    for files in (1, 40, 90):  # once so many files are there
        process = subprocess.Popen(command, env={"PYTHONPATH": ".", "PATH": "/usr/bin:/bin"})
        while process.poll() is None and sum(path.is_file() for path in out.rglob("*")) < files:
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    stages()[number].run(paths, out, ENGINE)
    whole, again = tree_bytes(tmp_path / "whole"), tree_bytes(out)
    assert kills and {name: data for name, data in again.items() if not name.endswith(".tmp")} == whole


def test_books_that_share_a_licence_and_quotations_are_kept(tmp_path):
    """300 long texts with the same header and 5 % of their words from one book of quotations: 97 % went elsewhere."""
    draw = random.Random(3)
    header = " ".join(f"licence{draw.randrange(400)}" for _ in range(600))
    quotations = [" ".join(f"q{draw.randrange(900)}" for _ in range(50)) for _ in range(40)]
    books = []
    for number in range(300):
        paragraphs = [" ".join(f"w{draw.randrange(20000)}" for _ in range(100)) for _ in range(57)]
        for quotation in draw.sample(quotations, 6):
            paragraphs.insert(draw.randrange(len(paragraphs)), quotation)
        books.append(Document(id=f"book{number}", text="\n\n".join([header, *paragraphs]), source="books"))
    counts = NearDedup().run(write_shards(tmp_path / "in", books, shards=4), tmp_path / "out", ENGINE)
    assert counts.kept >= 299


def test_bad_documents_are_named_drops_or_kept(tmp_path):
    documents = [
        Document(id="empty", text="", source="a"),
        Document(id="space", text=" \n\t", source="a"),
        Document(id="marks", text="*** --- !!!", source="a"),
        Document(id="one", text="word", source="a"),
        Document(id="one-again", text="Word.", source="a"),
        Document(id="million", text="word " * 1_000_000, source="a"),
        Document(id="long-word", text="x" * 1_000_000, source="a"),
    ]
    paths = write_shards(tmp_path / "in", documents)
    ExactDedup().run(paths, tmp_path / "exact", ENGINE)
    assert {row.document.id: row.drop.reason for row in dropped(tmp_path / "exact")} == {
        "empty": "empty_text",
        "space": "empty_text",
    }
    NearDedup().run(paths, tmp_path / "near", ENGINE)
    assert {row.document.id: (row.drop.reason, row.drop.partner) for row in dropped(tmp_path / "near")} == {
        "empty": ("no_words", None),
        "space": ("no_words", None),
        "marks": ("no_words", None),
        "one": ("near_duplicate", "one-again"),
    }


@pytest.mark.parametrize("stage", stages(), ids=lambda stage: stage.name)
def test_repeated_ids_are_an_error(tmp_path, stage):
    documents = [Document(id=f"d{n % 9}", text=f"text number {n} of these", source="a") for n in range(10)]
    with pytest.raises(ValueError, match="document id 'd0' occurs more than once"):
        stage.run(write_shards(tmp_path / "in", documents), tmp_path / "out", ENGINE)


def test_alarms_stop_the_run_with_the_numbers(tmp_path):
    documents = [Document(id=f"d{n:03d}", text=f"the same words again {n % 4}", source="s") for n in range(200)]
    paths = write_shards(tmp_path / "in", documents)
    with pytest.raises(DedupAlarm, match=r"s loses 196 of 200 documents \(98.0%\); allowed is 90.0%"):
        ExactDedup().run(paths, tmp_path / "a", ENGINE)
    with pytest.raises(
        DedupAlarm, match=r"^exact_dedup: 49 documents would be removed for repeating 'd000'; allowed is 40"
    ):
        ExactDedup(alarms=Alarms(max_cluster=40)).run(paths, tmp_path / "b", ENGINE)
    assert ExactDedup(alarms=LOOSE).run(paths, tmp_path / "c", ENGINE).dropped == 196
    with pytest.raises(ValueError, match="max_source_loss must be in"):
        Alarms(max_source_loss=0.0)


def test_exact_dedup_normalises_and_keeps_by_policy(tmp_path):
    texts = ["Caf\u00e9  au lait ", "Cafe\u0301 au\nlait", "café au lait", "Café au lait"]
    documents = [Document(id=f"d{n}", text=text, source="ab"[n // 3]) for n, text in enumerate(texts)]
    paths = write_shards(tmp_path / "in", documents)
    expected = {"none": [], "whitespace": ["d0", "d1"], "case": ["d0", "d1", "d2"]}
    for form, gone in expected.items():
        policy = SurvivorPolicy(sources=("b",))
        ExactDedup(normalise=form, policy=policy).run(paths, tmp_path / form, ENGINE)
        rows = dropped(tmp_path / form)
        assert [row.document.id for row in rows] == gone
        assert all(row.drop.partner == "d3" and row.drop.value == 1.0 for row in rows)


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox, jumps over_the lazy dog; and then: some more 1.5 words.",
        "naïve café e\u0301cole straße ÇA İstanbul ﬁn",
        "हिन्दी में लिखा हुआ एक वाक्य यहाँ है और शब्द",
        "in x² + y² the t₁ and Ⅳ½ of 你好世界 and こんにちは、世界 are words",
        "short",
        "",
        "a b c d",
    ],
)
def test_shingle_sets_are_those_of_plain_python(text):
    """As many distinct shingles, and equal ones for texts with equal words, as the plain statement has."""
    variants = [text, text.upper() if text.isascii() else text, "  " + text + "\n", "other words here " + text]
    sets = [shingle_set(variant) for variant in variants]
    found = unique_sorted(hash_shingles(variants, NearDedup().shingles))
    arrays = [found.values[a:b].tolist() for a, b in pairwise(found.starts)]
    alone = [unique_sorted(hash_shingles([variant], NearDedup().shingles)).values.tolist() for variant in variants]
    assert arrays == alone
    assert [len(array) for array in arrays] == [len(one) for one in sets]
    for first in range(len(variants)):
        for second in range(len(variants)):
            assert len(set(arrays[first]) & set(arrays[second])) == len(sets[first] & sets[second])


def test_scripts_without_spaces_are_shingled_by_character():
    text = "日本語の文章には単語の間に空白がありません"
    found = unique_sorted(hash_shingles([text, text[:-1], text[1:]], NearDedup().shingles))
    assert Counter(found.starts[1:] - found.starts[:-1]) == Counter({len(text) - 4: 1, len(text) - 5: 2})


def test_long_texts_are_hashed_in_pieces_with_the_same_result():
    draw = random.Random(0)
    text = " ".join(f"w{draw.randrange(10**6)}é" for _ in range(150_000))
    found = unique_sorted(hash_shingles([text], NearDedup().shingles))
    assert len(found.values) == len(shingle_set(text))
