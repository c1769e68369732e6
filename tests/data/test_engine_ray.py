"""A real Ray cluster of three nodes on this machine: the bytes of the local engine, whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from data.build import build_dataset
from data.clean.perplexity import ScorePerplexity
from data.document import Document
from data.engine import LocalPool
from data.engine_ray import Ray
from data.manifest import read_manifest
from data.stage import map_documents
from data.tables import count_rows, read_documents, read_dropped, write_documents
from tests.data.build_cases import file_hashes
from tests.data.cluster_cases import five_sources, small_quickstart
from tests.data.sources import test_crawl_shares
from tests.data.test_scheduler import deadly
from tests.data.test_store import bucket, held

__all__ = ["bucket"]  # a fixture

ROOT = Path(__file__).resolve().parents[2]
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 << 20}  # bytes


def test_the_local_path_imports_no_ray(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from data.build import build_dataset\n"
        "from tests.data import build_cases\n"
        f"build_dataset(build_cases.make_config(Path({str(tmp_path / 'd')!r}), tokenizer=None))\n"
        "sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0


def test_an_address_with_nobody_there_is_named() -> None:
    pytest.importorskip("ray")
    with (
        pytest.raises(ValueError, match=r"no Ray cluster at 127.0.0.1:9: .*ray start --head"),
        Ray(address="127.0.0.1:9").session(),
    ):
        pass
    with pytest.raises(ValueError, match="neither 'auto' nor HOST:PORT"), Ray(address="somewhere").session():
        pass


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def engine(cluster: Any) -> Ray:
    return Ray(address=cluster.address, ship_code=False)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the local engine writes."""
    return file_hashes(build_dataset(five_sources(tmp_path_factory.mktemp("local") / "dataset")))


@pytest.fixture(scope="module")
def expected_quickstart(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the local engine writes of the quickstart."""
    return file_hashes(build_dataset(small_quickstart(tmp_path_factory.mktemp("local") / "dataset")))


@pytest.mark.slow
def test_the_bytes_of_the_local_engine(cluster: Any, expected: dict[str, str], tmp_path: Path) -> None:
    assert file_hashes(build_dataset(five_sources(tmp_path / "three", engine=engine(cluster)))) == expected


@pytest.mark.slow
def test_the_quickstart_and_the_corpus_of_the_dedup_bench(
    cluster: Any, expected_quickstart: dict[str, str], tmp_path: Path
) -> None:
    dataset = build_dataset(small_quickstart(tmp_path / "three", engine=engine(cluster)))
    assert file_hashes(dataset) == expected_quickstart
    for stage in read_manifest(dataset)["stages"]:
        if stage["name"] == "near_dedup":
            assert stage["sources"]["planted"]["dropped"] > 4 and stage["sources"]["prose"]["kept"] > 10


@pytest.mark.slow
def test_a_dataset_in_a_store(cluster: Any, expected: dict[str, str], bucket: str, tmp_path: Path) -> None:
    made = five_sources(tmp_path, engine=engine(cluster))
    url = f"{bucket}/ray"
    build_dataset(replace(made, path=url, work=str(tmp_path / "work")))
    assert held(url, tmp_path / "all") == expected


@pytest.mark.slow
def test_a_crawl_in_shares(cluster: Any, tmp_path: Path) -> None:
    sites = test_crawl_shares.Sites()
    with test_crawl_shares.serving(sites) as seed:
        process = test_crawl_shares.start(tmp_path, seed, engine=replace(engine(cluster), cpus=0.5))
        test_crawl_shares.check(sites, tmp_path, process.communicate(timeout=200)[0].decode())


@pytest.mark.slow
def test_code_is_sent_to_the_workers(cluster: Any, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.parquet" for number in range(4)]
    for number, path in enumerate(paths):
        write_documents(path, [Document(id=f"s:{i}", text="text", source="s") for i in range(number)])
    with Ray(address=cluster.address).session(tmp_path, ("pyarrow",)) as session:
        assert session.map_shards(count_rows, paths, label="rows") == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_machine_dies_in_every_stage(cluster: Any, expected: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "dataset"
    driver = start_driver(cluster, path)
    for stage in ("read-source0", "shorten", "near_dedup", "heldout", "tokens"):
        while not list((path / "stages").glob(f"{stage}-*.partial/*")):
            assert driver.poll() is None, f"the build ended before {stage} was seen"
            time.sleep(0.01)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        cluster.add_node(**NODE)
    assert driver.wait() == 0
    assert file_hashes(path) == expected


@pytest.mark.slow
def test_the_driver_dies_and_its_work_is_not_done_again(cluster: Any, expected: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "dataset"
    driver = start_driver(cluster, path)
    while len(whole := list((path / "stages").glob("shorten-*.partial/done/*.json"))) < 3:
        assert driver.poll() is None, "the build ended before it was killed"
        time.sleep(0.01)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = {file.stem: _inode(file.parent.parent / "kept" / f"{file.stem}.parquet") for file in whole}
    build_dataset(five_sources(path, engine=engine(cluster)))
    (stage,) = (path / "stages").glob("shorten-*")
    assert {name: _inode(stage / "kept" / f"{name}.parquet") for name in before} == before
    assert (path / "build.log").read_text(encoding="utf-8").count("done before") == 5
    assert file_hashes(path) == expected


def start_driver(cluster: Any, path: Path) -> subprocess.Popen:
    """A build in a process of its own."""
    code = f"from tests.data.test_engine_ray import drive; drive({cluster.address!r}, {str(path)!r})"
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)


def _inode(path: Path) -> int:
    return path.stat().st_ino


def drive(address: str, path: str) -> None:
    """The driver that a test kills."""
    from tests.data import test_engine_ray as this

    this.build_dataset(five_sources(Path(path), engine=Ray(address=address, ship_code=False)))


@pytest.mark.slow
def test_a_document_that_kills_its_worker_is_dropped(cluster: Any, tmp_path: Path) -> None:
    inputs = [tmp_path / f"{number}.parquet" for number in range(3)]
    for shard, path in enumerate(inputs):
        texts = ["poison" if (shard, i) == (1, 4) else f"text {i}" for i in range(9)]
        write_documents(path, [Document(id=f"s:{shard}-{i}", text=t, source="s") for i, t in enumerate(texts)])
    with engine(cluster).session(tmp_path) as session:
        counts = map_documents(deadly, inputs, tmp_path / "out", session, label="clean")
    assert (counts.kept, counts.dropped) == (26, 1)
    (row,) = read_dropped(tmp_path / "out" / "dropped" / "00001.parquet")
    assert (row.document.id, row.drop.reason) == ("s:1-4", "killed_worker")


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
    paths = [tmp_path / f"{number}.parquet" for number in range(8)]
    for number, path in enumerate(paths):
        write_documents(path, [Document(id=f"s:{i}", text="text", source="s") for i in range(number)])
    with engine(cluster).session(tmp_path) as session:
        found = session.map_with(partial(Counting, tmp_path), rows_with, paths, label="rows")
    assert [rows for rows, _ in found] == list(range(8))
    assert len(list(tmp_path.glob("built-*"))) == len({process for _, process in found}) <= 3


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
    inputs = [tmp_path / f"{number}.parquet" for number in range(3)]
    for shard, path in enumerate(inputs):
        texts = ["poison" if (shard, i) == (1, 4) else f"text {i}" for i in range(9)]
        write_documents(path, [Document(id=f"s:{shard}-{i}", text=t, source="s") for i, t in enumerate(texts)])
    with engine(cluster).session(tmp_path) as session:
        counts = ScorePerplexity(scorer=FragileSpec(), batch_size=4).run(inputs, tmp_path / "out", session)
    assert (counts.kept, counts.dropped) == (26, 1)
    (row,) = read_dropped(tmp_path / "out" / "dropped" / "00001.parquet")
    assert (row.document.id, row.step, row.drop.reason) == ("s:1-4", "perplexity", "killed_worker")
    said = capsys.readouterr()
    assert "perplexity: shard 2 of 3: ActorDiedError" in said.out + said.err  # named, once


@pytest.mark.slow
def test_perplexity_by_actors_is_local_scoring_and_compiles_once(cluster: Any, tmp_path: Path) -> None:
    from tests.models.checkpoint_cases import save_tiny

    (tmp_path / "checkpoint").mkdir()
    save_tiny(tmp_path / "checkpoint")
    inputs = [tmp_path / f"{number}.parquet" for number in range(8)]
    for shard, path in enumerate(inputs):
        texts = ["some words of a text " * (1 + 5 * (i % 4)) + str(i + 100 * shard) for i in range(16)]
        write_documents(path, [Document(id=f"s:{shard}-{i}", text=t, source="s") for i, t in enumerate(texts)])
    found = []
    for name, where in (("local", LocalPool(workers=1)), ("ray", engine(cluster))):
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


@pytest.mark.slow
def test_machines_that_do_not_see_the_dataset_or_differ_are_named(cluster: Any, tmp_path: Path) -> None:
    with engine(cluster).session() as session:
        here = {"versions": {"python": "3.11.0", "numpy": "0.1"}, "sees": True}

        class Answer:
            exceptions = None

            @staticmethod
            def get(ref: Any, timeout: float) -> dict[str, Any]:
                return {"versions": {"python": "3.11.0", "numpy": "2.0"}, "sees": False}

        session._ray = Answer  # type: ignore[attr-defined]
        lines = session._differences("10.0.0.7", None, here, tmp_path)  # type: ignore[attr-defined]
    assert "machine 10.0.0.7 does not see" in lines[0]
    assert lines[1] == "machine 10.0.0.7 has numpy 2.0, the driver 0.1: install the same everywhere"


@pytest.mark.slow
def test_what_two_and_one_machines_write(
    cluster: Any, expected: dict[str, str], expected_quickstart: dict[str, str], tmp_path: Path
) -> None:
    for left in (1, 0):  # beside the head
        while len(cluster.worker_nodes) > left:
            cluster.remove_node(next(iter(cluster.worker_nodes)))
        assert file_hashes(build_dataset(five_sources(tmp_path / str(left), engine=engine(cluster)))) == expected
        small = small_quickstart(tmp_path / f"quickstart{left}", engine=engine(cluster))
        assert file_hashes(build_dataset(small)) == expected_quickstart
    kept = [d for p in sorted((tmp_path / "0" / "documents").glob("*.parquet")) for d in read_documents(p)]
    assert len(kept) > 100 and isinstance(LocalPool().num_workers, int)
