"""Document shards: what is written is read back, equal rows give equal bytes, half a file is never taken for whole."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.document import Document, Drop, Dropped
from data.tables import count_rows, read_documents, read_dropped, write_documents, write_dropped

DOCUMENTS = [
    Document(id="a", text="Grüße, 世界 \U0001f600\x00\n", source="s", meta={"n": 1, "tags": ["x"]}, scores={"p": 0.5}),
    Document(id="b", text="", source="s"),
    Document(id="c", text="plain", source="t", meta={"nested": {"deep": None}}),
]


def test_documents_and_drops_come_back_as_written(tmp_path: Path) -> None:
    assert write_documents(tmp_path / "d.parquet", DOCUMENTS) == 3
    assert list(read_documents(tmp_path / "d.parquet")) == DOCUMENTS
    dropped = [
        Dropped(DOCUMENTS[0], "clean.length", Drop("too_short", 3, 50)),
        Dropped(DOCUMENTS[1], "near", Drop("near_duplicate", 0.91, "0.8", partner="a")),
        Dropped(DOCUMENTS[2], "read", Drop("unparseable")),
    ]
    assert write_dropped(tmp_path / "x.parquet", iter(dropped)) == 3
    assert list(read_dropped(tmp_path / "x.parquet")) == dropped
    assert count_rows(tmp_path / "d.parquet") == count_rows(tmp_path / "x.parquet") == 3


def test_an_empty_shard_is_a_shard(tmp_path: Path) -> None:
    assert write_documents(tmp_path / "d.parquet", []) == 0
    assert list(read_documents(tmp_path / "d.parquet")) == []


def test_equal_rows_give_equal_bytes_whatever_the_key_order(tmp_path: Path) -> None:
    other = [Document(id=d.id, text=d.text, source=d.source, meta=dict(reversed(d.meta.items())), scores=d.scores)
             for d in DOCUMENTS]  # fmt: skip
    write_documents(tmp_path / "1.parquet", DOCUMENTS)
    write_documents(tmp_path / "2.parquet", other)
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    def broken():
        yield DOCUMENTS[0]
        raise RuntimeError("the reader broke")

    with pytest.raises(RuntimeError):
        write_documents(tmp_path / "d.parquet", broken())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_a_truncated_shard_is_one_clear_line(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "d.parquet"
    write_documents(path, DOCUMENTS)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(ValueError, match="unreadable or truncated") as error:
        list(read_documents(path))
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_damaged_page_is_an_error_not_other_text(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    write_documents(path, [Document(id=str(i), text=f"text {i} " * 50, source="s") for i in range(500)])
    damaged = bytearray(path.read_bytes())
    damaged[200:260] = bytes(60)
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="unreadable or truncated"):
        list(read_documents(path))


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such shard"):
        list(read_documents(tmp_path / "missing.parquet"))
    pq.write_table(pa.table({"name": ["x"]}), tmp_path / "foreign.parquet")
    with pytest.raises(ValueError, match="columns id, text, source, meta, scores missing, found name"):
        list(read_documents(tmp_path / "foreign.parquet"))


def test_bad_documents_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="document 'x': text with a lone surrogate"):
        write_documents(tmp_path / "d.parquet", [Document(id="x", text="\ud800", source="s")])
    with pytest.raises(ValueError, match="document x: meta and scores must be JSON"):
        write_documents(tmp_path / "d.parquet", [Document(id="x", text="", source="s", meta={"o": object()})])
    with pytest.raises(ValueError, match="document x: meta and scores must be JSON"):
        write_documents(tmp_path / "d.parquet", [Document(id="x", text="", source="s", scores={"p": float("nan")})])
    bad = Document(id="x", text="a\ud800b", source="s")
    write_dropped(tmp_path / "x.parquet", [Dropped(bad, "read", Drop("invalid_unicode"))])
    assert next(read_dropped(tmp_path / "x.parquet")).document.text == "a?b"


def test_memory_is_bounded_by_a_row_group(tmp_path: Path) -> None:
    path = tmp_path / "big.parquet"
    documents = (Document(id=str(i), text=f"{i:09d}" * 10_000, source="s") for i in range(600))  # 54 MB
    tracemalloc.start()
    assert write_documents(path, documents) == 600
    before = pa.total_allocated_bytes()
    assert sum(len(document.text) for document in read_documents(path)) == 600 * 90_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6 and pa.total_allocated_bytes() - before < 20e6
