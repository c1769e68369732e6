"""Ray as engine on a real cluster of three nodes: the bytes of the local engine, and bad input named in one line."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.build import build_dataset
from data.engine_ray import Ray
from data.manifest import read_manifest
from data.tables import count_rows
from tests.data.build_cases import file_hashes
from tests.data.cluster_cases import NODE, ROOT, engine, five_sources, shards_of, small_quickstart
from tests.data.sources import test_crawl_shares
from tests.data.test_store import bucket, held

__all__ = ["bucket"]  # a fixture


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
    paths = shards_of(tmp_path, [["text"] * number for number in range(4)])
    with Ray(address=cluster.address).session(tmp_path, ("pyarrow",)) as session:
        assert session.map_shards(count_rows, paths, label="rows") == [0, 1, 2, 3]


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
def test_a_machine_with_another_version_of_a_library_is_refused(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "other" / "numpy-0.1.dist-info").mkdir(parents=True)
    (tmp_path / "other" / "numpy-0.1.dist-info" / "METADATA").write_text("Name: numpy\nVersion: 0.1\n")
    odd = cluster.add_node(**NODE, env_vars={"PYTHONPATH": f"{tmp_path / 'other'}:{ROOT}"})
    try:
        with pytest.raises(
            ValueError, match=r"^machine \S+ has numpy 0\.1, the driver \S+: install the same everywhere$"
        ):
            start(replace(engine(cluster), ship_code=True), tmp_path, ("numpy", "pyarrow"))
    finally:
        cluster.remove_node(odd)


@pytest.mark.slow
def test_a_folder_that_depends_on_where_a_process_stands_is_refused(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"does not see dataset: set data.path .* by a path from the root"):
        start(engine(cluster), Path("dataset"))


@pytest.mark.slow
def test_what_no_machine_has_room_for_is_named_and_not_waited_for(cluster: Any, tmp_path: Path) -> None:
    large = replace(engine(cluster), cpus=2.0, model_resources=(("TPU", 4.0),))
    with large.session(tmp_path) as session:
        with pytest.raises(ValueError, match="a shard needs CPU 2 of one machine; the most that any has is CPU 1"):
            session.map_shards(count_rows, [tmp_path], label="rows")
        with pytest.raises(ValueError, match="a model needs TPU 4 of one machine; the most that any has is TPU 0"):
            session.map_with(str, count_rows, [tmp_path], label="rows")  # type: ignore[arg-type]
    with (
        pytest.raises(ValueError, match=r"a shard needs CPU 1, memory 1\.1259e\+15 of one machine"),
        replace(engine(cluster), memory_bytes=1 << 50).session(tmp_path) as session,
    ):
        session.map_shards(count_rows, [tmp_path], label="rows")


def start(config: Ray, folder: Path, libraries: tuple[str, ...] = ()) -> None:
    """A session and nothing in it."""
    with config.session(folder, libraries):
        pass


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
