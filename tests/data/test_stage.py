"""map_documents: one shard becomes one kept and one dropped shard, and what is whole is not done again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from data.document import Document, Drop, Dropped
from data.engine import LocalPool, ShardError
from data.keys import make_key, plain
from data.stage import Counts, map_documents
from data.tables import read_documents, read_dropped, write_documents


def drop_odd(documents: Iterator[Document]) -> Iterator[Document | Dropped]:
    for document in documents:
        odd = int(document.text) % 2
        yield Dropped(document, "odd", Drop("odd_number", odd, 0)) if odd else document


def lose_one(documents: Iterator[Document]) -> Iterator[Document]:
    next(documents)
    yield from documents


def only_the_second_shard(documents: Iterator[Document]) -> Iterator[Document | Dropped]:
    for document in drop_odd(documents):
        text = document.document.text if isinstance(document, Dropped) else document.text
        assert 10 <= int(text) < 20, "a shard that was whole is done again"
        yield document


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"in{shard}.parquet" for shard in range(3)]
    for shard, path in enumerate(paths):
        numbers = range(shard * 10, shard * 10 + 10)
        write_documents(path, [Document(id=f"n:{i}", text=str(i), source="n") for i in numbers])
    return paths


def test_shards_keep_their_place_and_their_order(inputs: list[Path], tmp_path: Path) -> None:
    counts = map_documents(drop_odd, inputs, tmp_path / "out", LocalPool(workers=1), label="odd")
    assert counts == Counts(read=30, kept=15, dropped=15) and counts.balanced
    kept = [[d.text for d in read_documents(path)] for path in sorted((tmp_path / "out" / "kept").iterdir())]
    assert kept == [[str(i) for i in range(start, start + 10, 2)] for start in (0, 10, 20)]
    dropped = [row for path in sorted((tmp_path / "out" / "dropped").iterdir()) for row in read_dropped(path)]
    assert [row.document.text for row in dropped] == [str(i) for i in range(1, 30, 2)]


def test_whole_shards_are_not_done_again(inputs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = map_documents(drop_odd, inputs, out, LocalPool(workers=1), label="odd")
    (out / "done" / "00001.json").unlink()
    assert map_documents(only_the_second_shard, inputs, out, LocalPool(workers=1), label="odd") == first


def test_a_transform_that_loses_a_document_is_an_error(inputs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"lose: shard 1 of 3 .* kept 9 \+ dropped 0 is not read 10"):
        map_documents(lose_one, inputs, tmp_path / "out", LocalPool(workers=1), label="lose")


def test_a_truncated_shard_stops_the_stage_with_its_name(inputs: list[Path], tmp_path: Path) -> None:
    inputs[1].write_bytes(inputs[1].read_bytes()[:-20])
    with pytest.raises(ShardError, match=r"odd: shard 2 of 3 .*in1.parquet: unreadable or truncated"):
        map_documents(drop_odd, inputs, tmp_path / "out", LocalPool(workers=2), label="odd")


def test_settings_that_say_nothing_stable_are_refused_in_keys() -> None:
    assert plain({"b": (1, {"x"}), "a": None}) == {"b": [1, ["x"]], "a": None}
    assert plain(drop_odd) == "tests.data.test_stage.drop_odd"
    with pytest.raises(TypeError, match="cannot be part of a stage key"):
        plain(object())
    with pytest.raises(ValueError, match="'no-such-library' is not installed"):
        make_key("x", version=1, settings=None, inputs=None, libraries=("no-such-library",))
    assert make_key("x", version=1, settings=1, inputs=2) != make_key("x", version=2, settings=1, inputs=2)
