"""Whatever dies on a cluster (machines, drivers, workers, actors), the bytes are there, and no work is done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data.augment.stage import Augment
from data.clean.perplexity import ScorePerplexity
from data.stage import map_documents
from data.tables import read_dropped
from tests.data.augment.cases import EVERYTHING, Deadly, check_poisoned, poisoned
from tests.data.build_cases import file_hashes
from tests.data.cluster_cases import NODE, engine, shards_of, start_driver
from tests.data.test_scheduler import deadly

SIGNS = {  # the stages of a build, and what says that a piece of their work is whole
    "read-source0": "done/*.json",
    "shorten": "done/*.json",
    "near_dedup": "scratch/scan/*/count.json",
    "heldout": "done/*.json",
    "tokens": "tokens.partial/runs/*/table.arrow",
}
POISONED = [["poison" if (shard, i) == (1, 4) else f"text {i}" for i in range(9)] for shard in range(3)]


class Whole:
    """The files that say that work is whole, seen when something was killed: none of them is ever written again."""

    def __init__(self, path: Path):
        self.path = path
        self.inodes: dict[tuple[str, str], int] = {}  # by stage folder and name in it

    def note(self) -> None:
        """Take in what is there now."""
        found = [file for stage, sign in SIGNS.items() for file in self._glob(f"{stage}-*.partial/{sign}")]
        for file in (*found, *self._glob("*[!l]/kept/*.parquet"), *self._glob("*[!l]/stage.json")):
            _, folder, *below = file.relative_to(self.path).parts
            self.inodes[folder.removesuffix(".partial"), "/".join(below)] = file.stat().st_ino

    def check(self) -> None:
        """Compare with what is there now."""
        for (folder, name), inode in self.inodes.items():
            for place in (folder, f"{folder}.partial"):
                try:
                    found = (self.path / "stages" / place / name).stat().st_ino
                except OSError:
                    continue
                assert found == inode, f"{folder}/{name} was whole and was made again"

    def _glob(self, pattern: str) -> list[Path]:
        return list((self.path / "stages").glob(pattern))

    def wait_for(self, stage: str, driver: subprocess.Popen) -> None:
        """Until a piece of a stage's work is whole."""
        while not self._glob(f"{stage}-*.partial/{SIGNS[stage]}"):
            assert driver.poll() is None, f"the build ended before {stage} was seen"
            self.check()
            time.sleep(0.01)

    def wait_for_the_end(self, driver: subprocess.Popen) -> None:
        """Until the build is whole."""
        while driver.poll() is None:
            self.check()
            time.sleep(0.01)
        assert driver.returncode == 0 and len(self.inodes) > 20
        self.check()


@pytest.mark.slow
def test_a_machine_dies_in_every_stage(cluster: Any, expected: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "dataset"
    driver, whole = start_driver(cluster, path), Whole(path)
    for stage in SIGNS:
        whole.wait_for(stage, driver)
        driver.send_signal(signal.SIGSTOP)  # else it is in a later stage when the new machine has come
        whole.note()
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        cluster.add_node(**NODE)
        driver.send_signal(signal.SIGCONT)
    whole.wait_for_the_end(driver)
    assert file_hashes(path) == expected


@pytest.mark.slow
def test_the_driver_dies_in_every_stage_and_its_work_is_not_done_again(
    cluster: Any, expected: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "dataset"
    whole = Whole(path)
    for stage in SIGNS:
        driver = start_driver(cluster, path)
        whole.wait_for(stage, driver)
        whole.note()
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    whole.wait_for_the_end(start_driver(cluster, path))
    assert file_hashes(path) == expected


@pytest.mark.slow
def test_a_document_that_kills_its_worker_is_dropped(cluster: Any, tmp_path: Path) -> None:
    with engine(cluster).session(tmp_path) as session:
        counts = map_documents(deadly, shards_of(tmp_path, POISONED), tmp_path / "out", session, label="clean")
    assert (counts.kept, counts.dropped) == (26, 1)
    (row,) = read_dropped(tmp_path / "out" / "dropped" / "00001.parquet")
    assert (row.document.id, row.drop.reason) == ("s:1-4", "killed_worker")


class Fragile:
    """A stand-in for a model that dies as the OOM killer does it, at a text that is too much for it."""

    def score(self, texts: Any) -> tuple[list[float], list[int]]:
        if "poison" in texts:
            os.kill(os.getpid(), signal.SIGKILL)
        return [float(len(text)) for text in texts], [1 for _ in texts]


@dataclass(frozen=True, kw_only=True)
class FragileSpec:
    """A spec that builds it."""

    def build(self) -> Fragile:
        return Fragile()


@pytest.mark.slow
def test_a_document_that_kills_an_actor_is_dropped(
    cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = ScorePerplexity(scorer=FragileSpec(), batch_size=4)
    with engine(cluster).session(tmp_path) as session:
        counts = stage.run(shards_of(tmp_path, POISONED), tmp_path / "out", session)
    assert (counts.kept, counts.dropped) == (26, 1)
    (row,) = read_dropped(tmp_path / "out" / "dropped" / "00001.parquet")
    assert (row.document.id, row.step, row.drop.reason) == ("s:1-4", "perplexity", "killed_worker")
    said = "".join(capsys.readouterr())
    named = [line for line in said.splitlines() if "perplexity: shard 2 of 3: ActorDiedError" in line]
    assert len(named) == 1 and named[0].endswith("(out of memory?); trying again")


@pytest.mark.slow
def test_a_document_that_kills_the_model_of_an_augmentation_gets_no_copies(cluster: Any, tmp_path: Path) -> None:
    where, asked = [(1, 6)], tmp_path / "asked"
    asked.mkdir()
    stage = Augment(technique=Deadly(asked=asked, in_driver=True), factor=3.0, chunk=4, gates=EVERYTHING)
    with engine(cluster).session(tmp_path) as session:
        counts = stage.run(poisoned(tmp_path / "in", where), tmp_path / "out", session)
    check_poisoned(tmp_path / "out", counts, asked, where)
