"""Scheduling and its consequences on disk: second copies of stragglers, and documents that kill their process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest

from data import scheduler, stage
from data.document import Document, Dropped
from data.engine import LocalPool, ShardError
from data.scheduler import Answer, Trouble, schedule
from data.stage import Counts, map_documents
from data.strikes import STRIKES, watched
from data.tables import read_documents, read_dropped, write_documents


def deadly(documents: Iterable[Document]) -> Iterator[Document | Dropped]:
    """Kills its process at every document with the text "poison"."""
    for document in documents:
        if document.text == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        yield document


def wait_the_first_time(number: int, *, folder: Path) -> int:
    marker = folder / str(number)
    if number == 5 and not marker.exists():
        marker.touch()
        time.sleep(60)
    return number


def shards(folder: Path, poisoned: dict[int, list[int]]) -> list[Path]:
    folder.mkdir()
    paths = []
    for shard in range(3):
        paths.append(folder / f"{shard}.parquet")
        texts = ["poison" if i in poisoned.get(shard, []) else f"text {i}" for i in range(20)]
        write_documents(paths[-1], [Document(id=f"s:{shard}-{i}", text=t, source="s") for i, t in enumerate(texts)])
    return paths


def test_documents_that_kill_their_process_are_dropped_and_nothing_else_is(tmp_path: Path) -> None:
    inputs = shards(tmp_path / "in", {0: [7], 2: [0, 19]})
    output = tmp_path / "out"
    counts = map_documents(deadly, inputs, output, LocalPool(workers=2), label="clean")
    assert counts == Counts(read=60, kept=57, dropped=3)
    dropped = [row for path in sorted((output / "dropped").glob("*.parquet")) for row in read_dropped(path)]
    assert [(row.document.id, row.step, row.drop.reason, row.drop.value) for row in dropped] == [
        ("s:0-7", "clean", "killed_worker", STRIKES),
        ("s:2-0", "clean", "killed_worker", STRIKES),
        ("s:2-19", "clean", "killed_worker", STRIKES),
    ]
    kept = [document.id for path in sorted((output / "kept").glob("*.parquet")) for document in read_documents(path)]
    assert len(kept) == 57 and not {row.document.id for row in dropped} & set(kept)


def test_a_shard_of_nothing_but_such_documents_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "MAX_DEATHS", 5)
    inputs = shards(tmp_path / "in", {1: list(range(20))})
    with pytest.raises(ShardError, match=r"clean: shard 2 of 3 .*killed by SIGKILL"):
        map_documents(deadly, inputs, tmp_path / "out", LocalPool(workers=2), label="clean")


class Model:
    """Takes documents in batches, and kills its process at those that it cannot bear."""

    def __init__(self, most: int = 100):
        self.most = most

    def batches(self, documents: Iterable[Document]) -> Iterator[Document]:
        window = list(documents)  # all are read before the first is worked on
        if "poison" in {document.text for document in window} or len(window) > self.most:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from (document.with_scores(batch=len(window)) for document in window)


def through(documents: Iterable[Document], model: Model) -> Iterator[Document]:
    return model.batches(documents)


def with_model(inputs: list[Path], output: Path, model: Model) -> Counts:
    """`map_documents_with` on processes that may die (the local engine's models live in the driver)."""
    fn = partial(stage._map_shard_with, model=model, transform=through, output=output, label="score")
    tasks = [(path, index) for index, path in enumerate(inputs)]
    return sum(LocalPool(workers=2).map_shards(fn, tasks, label="score", deaths=stage.MAX_DEATHS), Counts())


def test_a_document_that_kills_a_model_is_found_though_it_comes_in_batches(tmp_path: Path) -> None:
    output = tmp_path / "out"
    inputs = shards(tmp_path / "in", {0: [7, 9], 2: [19]})
    assert with_model(inputs, output, Model()) == Counts(read=60, kept=57, dropped=3)
    dropped = [row for path in sorted((output / "dropped").glob("*.parquet")) for row in read_dropped(path)]
    assert [(row.document.id, row.drop.reason) for row in dropped] == [
        (name, "killed_worker") for name in ("s:0-7", "s:0-9", "s:2-19")
    ]
    batches = [d.scores["batch"] for path in (output / "kept").glob("*.parquet") for d in read_documents(path)]
    assert set(batches) == {18, 19, 20}  # as if nothing had been: probing leaves no mark


def test_batches_that_are_too_large_are_no_document_s_fault(tmp_path: Path) -> None:
    inputs = shards(tmp_path / "in", {})
    with pytest.raises(ShardError, match=r"score: shard . of 3 .*died 4 times; .* smaller batch_size"):
        with_model(inputs, tmp_path / "out", Model(most=19))


def test_strikes_count_deaths_in_one_document_only(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("start\nstart\n1\n2\nstart\n1\n2\n3\nstart\n1\n2\n")
    with watched(path) as strikes:
        assert [strikes.out(number) for number in (1, 2, 3)] == [False, True, False]
    assert not path.exists()


def test_a_straggler_is_started_again_and_the_first_result_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "STRAGGLER_SECONDS", 0.5)
    monkeypatch.setattr(scheduler, "CHECK_SECONDS", 0.1)
    fn = partial(wait_the_first_time, folder=tmp_path)
    started = time.monotonic()
    assert LocalPool(workers=2).map_shards(fn, range(8), label="wait", twice=True) == list(range(8))
    assert time.monotonic() - started < 50


class Script:
    """Hands that answer as they are told: per shard, a list of results or troubles."""

    def __init__(self, answers: dict[int, list[object]]):
        self.answers, self.queue = answers, []

    def free(self) -> int:
        return 2 - len(self.queue)

    def start(self, ticket: int, index: int) -> None:
        self.queue.append((ticket, self.answers[index].pop(0)))

    def wait(self, seconds: float | None) -> list[Answer]:
        ticket, answer = self.queue.pop(0)
        return [Answer(ticket, trouble=answer) if isinstance(answer, Trouble) else Answer(ticket, answer)]

    def stop(self, ticket: int) -> None:
        raise AssertionError("nothing runs twice here")


def test_deaths_and_errors_are_counted_apart() -> None:
    died, broken = Trouble("it died", died=True), Trouble("input/output error", errno=5)
    hands = Script({0: [died, broken, died, broken, "whole"], 1: ["one"]})
    assert sorted(schedule(hands, "ab", "step", deaths=3)) == [(0, "whole"), (1, "one")]
    with pytest.raises(ShardError, match=r"step: shard 1 of 1 .*it died"):
        list(schedule(Script({0: [died, died, died]}), "a", "step", deaths=3))
    with pytest.raises(ShardError, match="bad value"):
        list(schedule(Script({0: [Trouble("bad value")]}), "a", "step", deaths=3))
