"""Token shards hold every document exactly, whatever the workers; what is damaged or foreign is refused in one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from data import token_shards, tokens
from data.document import Document
from data.engine import LocalPool
from data.token_reader import TokenReader, open_tokens
from data.tokenize import tokenize
from data.tokenizer import load_tokenizer
from data.tokenizer_config import TokenizerConfig
from data.tokenizer_train import train_tokenizer
from data.tokens import tokenize_stage
from tests.data.token_data import SMALL, build, stdlib_documents, tree

DOCUMENTS = stdlib_documents(25)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("built"), DOCUMENTS)


@pytest.fixture
def dataset(built: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(built, tmp_path / "dataset"))


@pytest.fixture
def small_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_shards, "RECORD_TOKENS", 100)
    monkeypatch.setattr(token_shards, "RECORDS_PER_SHARD", 30)


def read_index(folder: Path) -> tuple[pa.Table, dict]:
    table = pa.ipc.open_file(pa.memory_map(str(folder / "index.arrow"))).read_all()
    return table, json.loads(table.schema.metadata[b"sluice"])


def check_every_document(dataset: Path, documents: tuple[Document, ...]) -> None:
    expected = {d.id: (d, t) for d, t in tokenize(documents, load_tokenizer(dataset / "tokenizer"))}
    found = []
    for split in ("train", "heldout"):
        reader = open_tokens(dataset, split, cache_bytes=1000)
        table, header = read_index(dataset / "tokens" / split)
        for source, index in reader.index.items():
            ids = reader.doc_ids(source, np.arange(index.documents))
            rows = table.slice(index.first, index.documents).to_pydict()
            files = [dataset / "tokens" / split / shard["file"] for shard in header["sources"][source]["shards"]]
            records = [r for f in files for r in (lambda a: a.read(range(a.num_records())))(ArrayRecordReader(str(f)))]
            for place, doc_id in enumerate(ids):
                document, tokens = expected[doc_id]
                assert document.meta["split"] == split and document.source == source == rows["source"][place]
                assert reader.document_ids(source, place).tolist() == tokens.ids.tolist()
                assert index.num_bytes[place] == rows["num_bytes"][place] == len(document.text.encode())
                assert index.num_tokens[place] == rows["num_tokens"][place] == len(tokens.ids)
                record = np.frombuffer(records[rows["record"][place]], reader.dtype)
                assert record[rows["offset"][place]] == 1  # BOS
                found.append(doc_id)
    assert sorted(found) == sorted(expected)


def test_every_document_is_there_once_with_its_exact_ids(built: Path) -> None:
    check_every_document(built, DOCUMENTS)


@pytest.mark.usefixtures("small_records")
def test_documents_lie_across_records_and_shards(tmp_path: Path) -> None:
    dataset = build(tmp_path, DOCUMENTS[:300])
    table, header = read_index(dataset / "tokens" / "train")
    assert all(len(entry["shards"]) > 2 for entry in header["sources"].values())
    assert max(table.column("num_tokens").to_pylist()) > 3000  # longer than a shard
    check_every_document(dataset, DOCUMENTS[:300])


def test_bytes_do_not_depend_on_workers_or_shards(built: Path, tmp_path: Path) -> None:
    for name, documents, shards, workers in (("a", DOCUMENTS, 5, 2), ("b", DOCUMENTS[::-1], 1, 1)):
        shutil.copytree(built / "tokenizer", tmp_path / name / "tokenizer")
        build(tmp_path / name, documents, shards=shards, workers=workers)
        assert tree(tmp_path / name / "tokens") == tree(built / "tokens")


def test_the_order_is_shuffled_by_the_seed(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built / "tokenizer", tmp_path / "tokenizer")
    other = open_tokens(build(tmp_path, DOCUMENTS, seed=1), "train")
    first = open_tokens(built, "train")
    for source, index in first.index.items():
        orders = [reader.doc_ids(source, np.arange(index.documents)) for reader in (first, other)]
        assert sorted(orders[0]) == sorted(orders[1])
        assert orders[0] != orders[1]
        assert orders[0] != sorted(orders[0])


def test_counts_are_those_of_the_index(built: Path, tmp_path: Path) -> None:
    shards = sorted((built / "documents").glob("*.parquet"))
    counts = tokenize_stage(shards, built / "tokenizer", tmp_path / "tokens", LocalPool(workers=1))
    for split, by_source in counts.items():
        reader = open_tokens(built, split)
        assert {source: (c.documents, c.tokens, c.num_bytes) for source, c in by_source.items()} == {
            source: (index.documents, index.tokens, int(index.num_bytes.sum()))
            for source, index in reader.index.items()
        }
    assert sum(c.documents for by_source in counts.values() for c in by_source.values()) == len(DOCUMENTS)


def test_what_a_killed_build_left_is_not_used(dataset: Path, built: Path) -> None:
    (dataset / "tokens").rename(dataset / "tokens.partial")
    with pytest.raises(ValueError, match="no token shards here; build the dataset first"):
        open_tokens(dataset, "train")
    shards = sorted((dataset / "documents").glob("*.parquet"))
    tokenize_stage(shards, dataset / "tokenizer", dataset / "tokens", LocalPool(workers=1))
    assert tree(dataset / "tokens") == tree(built / "tokens")
    assert not (dataset / "tokens.partial").exists()


def test_whole_runs_of_a_killed_build_are_used_where_their_inputs_are_the_same(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = sorted((built / "documents").glob("*.parquet"))

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def run(seed: int = 0) -> None:
        tokenize_stage(shards, built / "tokenizer", tmp_path / "tokens", LocalPool(workers=1), seed=seed)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tokens, "write_split", stopped)
        run()
    left = tmp_path / "tokens.partial"
    shutil.copytree(left, tmp_path / "copy")
    monkeypatch.setattr(tokens, "tokenize", stopped)
    run()  # encodes nothing
    assert tree(tmp_path / "tokens") == tree(built / "tokens")
    (tmp_path / "copy").rename(left)
    (left / "runs" / "00000" / "table.arrow").unlink()
    with pytest.raises(KeyboardInterrupt):
        run()
    assert len(list(left.glob("runs/*/table.arrow"))) == len(shards) - 1 > 0
    with pytest.raises(KeyboardInterrupt):
        run(seed=1)
    assert not list(left.glob("runs/*/table.arrow"))


@pytest.mark.usefixtures("small_records")
def test_loss_weights_travel_with_their_tokens(tmp_path: Path) -> None:
    spans = {"loss_spans": [[0, 10], [15, 30]]}
    documents = tuple(
        replace(d, meta={**d.meta, **spans}) if d.source == "prose" and n % 2 and len(d.text) > 30 else d
        for n, d in enumerate(DOCUMENTS[:100])
    )
    dataset = build(tmp_path, documents, shards=3)
    expected = {d.id: t for d, t in tokenize(documents, load_tokenizer(dataset / "tokenizer"))}
    reader = open_tokens(dataset, "train")
    assert {source: index.weighted for source, index in reader.index.items()} == {"code": False, "prose": True}
    index, partly = reader.index["prose"], 0
    for place, doc_id in enumerate(reader.doc_ids("prose", np.arange(index.documents))):
        begin, count = int(index.begins[place]), int(index.num_tokens[place])
        weights = expected[doc_id].loss_weights
        partly += weights is not None
        found = reader.loss_weights("prose", begin, begin + count)
        assert found.tolist() == (np.ones(count) if weights is None else weights).tolist()
    assert partly > 5
    check_every_document(dataset, documents)


def test_wide_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("data.tokens", "data.token_shards", "data.tokenize"):
        monkeypatch.setattr(f"{module}.token_dtype", lambda _: np.dtype("<u4"))
    dataset = build(tmp_path, DOCUMENTS[:50])
    assert open_tokens(dataset, "train").dtype == np.uint32
    check_every_document(dataset, DOCUMENTS[:50])


def one_line(match: str, dataset: Path, **options: object) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        open_tokens(dataset, "train", **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_truncated_missing_or_swapped_shard_is_one_line(dataset: Path) -> None:
    path = dataset / "tokens" / "train" / "code-00000-of-00001.arrayrecord"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    one_line(
        r"code-00000-of-00001.arrayrecord: truncated or changed: \d+ bytes, expected \d+ with \d+ records", dataset
    )
    path.write_bytes(b"\0" * len(content))
    one_line("code-00000-of-00001.arrayrecord: truncated or changed", dataset)
    path.unlink()
    one_line("code-00000-of-00001.arrayrecord: shard is missing", dataset)


def test_a_record_that_cannot_be_read_is_one_line(dataset: Path) -> None:
    path = dataset / "tokens" / "train" / "code-00000-of-00001.arrayrecord"
    content = bytearray(path.read_bytes())
    content[100_000:100_500] = bytes(500)
    path.write_bytes(content)
    reader = open_tokens(dataset, "train")
    with pytest.raises(
        ValueError, match=r"code-00000-of-00001.arrayrecord: record .* build the dataset again"
    ) as caught:
        for place in range(reader.index["code"].documents):
            reader.document_ids("code", place)
    assert "\n" not in str(caught.value)


def test_a_damaged_index_is_one_line(dataset: Path) -> None:
    path = dataset / "tokens" / "train" / "index.arrow"
    content = path.read_bytes()
    for cut in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        one_line("unreadable or truncated token index", dataset)
    path.unlink()
    one_line("no token index", dataset)


def test_another_tokenizer_is_refused(dataset: Path, tmp_path: Path) -> None:
    config = replace(SMALL, vocab_size=500)
    shards = sorted((dataset / "documents").glob("*.parquet"))
    other = train_tokenizer(config, shards, tmp_path / "other")
    open_tokens(dataset, "train", tokenizer=load_tokenizer(dataset / "tokenizer"))
    one_line("built with tokenizer .*, given .* with 500 ids; build the dataset again", dataset, tokenizer=other)
    shutil.rmtree(dataset / "tokenizer")
    other.save(dataset / "tokenizer")
    one_line("built with tokenizer", dataset)


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    documents = (*DOCUMENTS[:40], replace(DOCUMENTS[0], id="odd", meta={"split": "validation"}))
    with pytest.raises(ValueError, match="document odd has split 'validation'; expected train or heldout"):
        build(tmp_path, documents, config=TokenizerConfig(vocab_size=400, sample_bytes=50_000, num_threads=1))


def test_an_empty_split_is_whole(tmp_path: Path) -> None:
    documents = [replace(document, meta={}) for document in DOCUMENTS[:20]]
    dataset = build(tmp_path, documents)
    assert open_tokens(dataset, "heldout").index == {}
    assert TokenReader(dataset / "tokens" / "train").header["documents"] == 20
