"""A dataset in an object store, without rename, append and folders: local servers of S3 (moto) and Cloud Storage."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from data import build, store
from data.build import build_dataset
from data.explain import explain
from data.loader import LoaderConfig, open_loader
from data.store import Store, find_dataset, mirror_folder
from data.tables import read_documents
from tests.data.build_cases import file_hashes, make_config
from tests.gcs_server import environment, gcs_server

ROOT = Path(__file__).resolve().parents[2]
HELD = ("store.url", "cache/")  # of this place, not of the dataset
LOADER = LoaderConfig(seq_len=32, global_batch_size=4)


@pytest.fixture(scope="module", params=["s3", pytest.param("gs", marks=pytest.mark.slow)])
def bucket(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty bucket."""
    with s3_server() if request.param == "s3" else gcs_server() as url:
        yield url


@contextmanager
def s3_server() -> Iterator[str]:
    pytest.importorskip("s3fs", reason="no s3fs: pip install s3fs 'moto[server]'")
    moto = pytest.importorskip("moto.server", reason="no moto: pip install s3fs 'moto[server]'")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    values = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    with environment(values | {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}):
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("corpora")
        yield "s3://corpora"
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has seen no dataset yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same dataset built in a folder."""
    return build_dataset(make_config(tmp_path_factory.mktemp("local") / "dataset"))


def hashes(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in file_hashes(folder).items() if not name.startswith(HELD)}


def held(url: str, folder: Path) -> dict[str, str]:
    """Hashes of everything that the store has."""
    kept = Store(url, folder)
    sizes = kept.sizes()
    kept.get(sizes, sizes)
    return hashes(folder)


def at(path: str, **changes: Any) -> Any:
    return make_config(path, **changes)  # type: ignore[arg-type]


def test_a_store_holds_the_bytes_of_a_folder_and_readers_take_what_they_open(
    bucket: str, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{bucket}/whole"
    worked = build_dataset(at(url, workers=2))
    assert worked == mirror_folder(url) and hashes(worked) == hashes(local)
    assert held(url, tmp_path / "all") == hashes(local)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))  # another machine: nothing is built there
    monkeypatch.setattr(build, "run_step", None)
    for config in (at(url), at(url, rebuild=False, seed=9)):
        found = build_dataset(config)
        assert not list(found.rglob("*.arrayrecord")) and not (found / "stages").exists()
    loader, there = open_loader(found, LOADER), open_loader(local, LOADER)
    for step in range(3):
        for name, array in there.batch(step).items():
            np.testing.assert_array_equal(loader.batch(step)[name], array)
    assert list(found.rglob("*.arrayrecord"))  # brought when they were read
    (shard, *_) = sorted((local / "documents").glob("*.parquet"))
    name = next(read_documents(shard)).id
    assert explain(find_dataset(url), name) == explain(local, name)


def test_what_came_damaged_out_of_a_store_is_refused(bucket: str, tmp_path: Path) -> None:
    url = f"{bucket}/damaged"
    build_dataset(at(url))
    files, root = fsspec.core.url_to_fs(url)
    (shard, *_) = sorted(files.glob(f"{root}/tokens/train/*.arrayrecord"))
    content = files.cat_file(shard)
    found = find_dataset(url, tmp_path / "reader")
    files.pipe_file(shard, content[:-7])
    with pytest.raises(ValueError, match=r"arrayrecord: \d+ bytes came, expected \d+"):
        open_loader(found, LOADER).batch(0)
    files.pipe_file(shard, bytes(len(content)))  # the right size, and 0 records
    with pytest.raises(ValueError, match=r"truncated or changed: .* records"):
        open_loader(found, LOADER).batch(0)


def test_a_changed_config_replaces_what_it_changes(bucket: str, local: Path, tmp_path: Path) -> None:
    from tests.data.build_cases import Shorten

    url = f"{bucket}/changed"
    stages = (Shorten(least=485), *make_config(tmp_path).stages[1:])
    build_dataset(at(url, stages=stages))
    reader = tmp_path / "reader"
    before = (find_dataset(url, reader) / "manifest.json").read_bytes()
    build_dataset(at(url, work=str(tmp_path / "other")))  # another machine, which takes down what is the same
    log = (tmp_path / "other" / "build.log").read_text(encoding="utf-8")
    assert log.count("done before") == 2  # the two sources
    assert held(url, tmp_path / "all") == hashes(local)
    assert (find_dataset(url, reader) / "manifest.json").read_bytes() != before
    assert open_loader(reader, LOADER).stats == open_loader(local, LOADER).stats


def test_a_driver_that_dies_goes_on_elsewhere(bucket: str, local: Path, tmp_path: Path) -> None:
    url = f"{bucket}/killed"
    code = (
        "from tests.data import test_store as this; this.store.KEEP_SECONDS = 0.1\n"
        f"this.build_dataset(this.at({url!r}, pause=0.05, work={str(tmp_path / 'first')!r}))"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    kept = Store(url, tmp_path)
    while not (done := [name for name in kept.sizes("stages") if "/shorten-" in name and "/done/" in name]):
        assert driver.poll() is None, "the build ended before it was killed"
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    second = tmp_path / "second"
    times = _times_of_work(second, url)
    assert held(url, tmp_path / "all") == hashes(local) == hashes(second)
    log = (second / "build.log").read_text(encoding="utf-8")
    assert log.count("done before") == 2
    shards = {name.rpartition("/")[2].removesuffix(".json") for name in done}
    assert shards and not shards & times  # whole before the kill: not done again


def _times_of_work(folder: Path, url: str) -> set[str]:
    """Build in a folder; the shards of the first stage that were worked on."""
    worked = set()
    real = store.Store.take_step

    def take(self: Store, name: str, partial: str) -> None:
        real(self, name, partial)
        if "/shorten-" in name:
            worked.update(path.stem for path in (folder / partial / "kept").glob("*.parquet"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.Store, "take_step", take)
        build_dataset(at(url, work=str(folder)))
    every = {path.stem for path in next((folder / "stages").glob("shorten-*/kept")).glob("*.parquet")}
    return every - worked


def test_stores_that_are_not_there_are_one_line(bucket: str, tmp_path: Path) -> None:
    other = bucket.replace(bucket.split("/")[-1], "nobody")
    with pytest.raises(ValueError, match=rf"^{other}/x: cannot "):
        build_dataset(at(f"{other}/x"))
    with pytest.raises(ValueError, match="no whole dataset here"):
        find_dataset(f"{bucket}/nothing")
    with pytest.raises(ValueError, match="no whole dataset here"):
        build_dataset(at(f"{bucket}/nothing", rebuild=False))
