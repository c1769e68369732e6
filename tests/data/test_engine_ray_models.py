"""Models as a cluster's long-lived actors: built once each, with the numbers of local scoring."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from data.clean.perplexity import ScorePerplexity
from data.engine import LocalPool, ShardError
from data.scheduler import MAX_ATTEMPTS
from data.tables import count_rows, read_documents
from tests.data.cluster_cases import engine, shards_of


class Counting:
    """A stand-in for a model: says how often it was built and in which process it works."""

    def __init__(self, folder: Path):
        (folder / f"built-{os.getpid()}-{time.monotonic_ns()}").touch()

    def rows(self, path: Path) -> tuple[int, int]:
        time.sleep(0.2)
        return count_rows(path), os.getpid()


def rows_with(path: Path, model: Counting) -> tuple[int, int]:
    return model.rows(path)


@pytest.mark.slow
def test_a_model_is_built_once_an_actor(cluster: Any, tmp_path: Path) -> None:
    paths = shards_of(tmp_path, [["text"] * number for number in range(8)])
    with engine(cluster).session(tmp_path) as session:
        found = session.map_with(partial(Counting, tmp_path), rows_with, paths, label="rows")
    assert [rows for rows, _ in found] == list(range(8))
    assert len(list(tmp_path.glob("built-*"))) == len({process for _, process in found}) <= 3


def too_large(folder: Path) -> Counting:
    """As a model that its machine has no memory for."""
    model = Counting(folder)
    os._exit(1)
    return model


@pytest.mark.slow
def test_a_model_whose_process_dies_while_it_is_loaded_is_tried_three_times(cluster: Any, tmp_path: Path) -> None:
    paths = shards_of(tmp_path, [["text"]])
    with engine(cluster).session(tmp_path) as session, pytest.raises(ShardError, match="while its model was loaded"):
        session.map_with(partial(too_large, tmp_path), rows_with, paths, label="rows", deaths=25)
    assert len(list(tmp_path.glob("built-*"))) == MAX_ATTEMPTS


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A checkpoint as scorer that notes, call by call, how many programs were compiled in it."""

    checkpoint: str
    notes: Path

    def build(self) -> Any:
        import jax

        from models.specs import CheckpointScorer

        compiled: list[str] = []

        def listen(event: str, seconds: float, **_: Any) -> None:
            if event.endswith("backend_compile_duration"):
                compiled.append(event)

        jax.monitoring.register_event_duration_secs_listener(listen)
        scorer, notes = CheckpointScorer(checkpoint=self.checkpoint).build(), self.notes / f"{os.getpid()}"

        class Scoring:
            def score(self, texts: Any) -> Any:
                result = scorer.score(texts)
                with notes.open("a") as file:
                    file.write(f"{len(compiled)}\n")
                compiled.clear()
                return result

        return Scoring()


@pytest.mark.slow
def test_perplexity_by_actors_is_local_scoring_and_compiles_once(cluster: Any, tmp_path: Path) -> None:
    from tests.models.checkpoint_cases import save_tiny

    (tmp_path / "checkpoint").mkdir()
    save_tiny(tmp_path / "checkpoint")
    words = ["some words of a text " * (1 + 5 * (i % 4)) for i in range(16)]
    inputs = shards_of(tmp_path, [[f"{text}{i + 100 * shard}" for i, text in enumerate(words)] for shard in range(6)])
    found = []
    for name, where in (("local", LocalPool(workers=1)), ("ray", replace(engine(cluster), max_models=2))):
        (tmp_path / f"notes-{name}").mkdir()
        scorer = Watched(checkpoint=str(tmp_path / "checkpoint"), notes=tmp_path / f"notes-{name}")
        with where.session(tmp_path) as session:
            ScorePerplexity(scorer=scorer, batch_size=4).run(inputs, tmp_path / name, session)
        kept = sorted((tmp_path / name / "kept").glob("*.parquet"))
        found.append([d.scores["perplexity"] for path in kept for d in read_documents(path)])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    for actor in (tmp_path / "notes-ray").iterdir():
        counts = [int(line) for line in actor.read_text().split()]
        assert sum(counts[4:]) == 0 < sum(counts[:4])  # the first shard's four batches warm it up
