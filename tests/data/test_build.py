"""The build: the same bytes whatever the workers and the kills, only what changed is done again, the books balance."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from data.build import DataConfig, build_dataset, plan
from data.document import Document
from data.engine import LocalPool, ShardError
from data.heldout import HeldOut
from data.manifest import read_manifest
from data.sources.source import Source
from data.stage import Counts
from data.tables import ShardWriter, read_documents, read_dropped
from tests.data.build_cases import Invented, Lose, Shorten, file_hashes, make_config


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset built in one go by one worker."""
    return build_dataset(make_config(tmp_path_factory.mktemp("whole") / "dataset"))


def test_the_layout_and_the_books(whole: Path) -> None:
    documents = [document for path in sorted((whole / "documents").iterdir()) for document in read_documents(path)]
    dropped = [row for path in sorted((whole / "dropped").iterdir()) for row in read_dropped(path)]
    manifest = read_manifest(whole)
    assert [stage["name"] for stage in manifest["stages"]] == [
        "read-alpha", "read-beta", "shorten", "exact_dedup", "heldout",
    ]  # fmt: skip
    assert len(documents) + len(dropped) == 5 * 40
    assert {row.drop.reason for row in dropped} == {"unreadable", "too_short", "exact_duplicate"}
    assert all("@" not in row.document.text and "[EMAIL]" in row.document.text for row in dropped)
    assert all("@" in document.text for document in documents)
    assert manifest["dropped"]["documents"] == len(dropped)
    for stage in manifest["stages"]:
        assert Counts(**stage["counts"]).balanced
        assert sum(books["dropped"] for books in stage["sources"].values()) == stage["counts"]["dropped"]
        assert sum(row["documents"] for row in stage["reasons"]) == stage["counts"]["dropped"]
        assert (whole / stage["folder"] / "stage.json").is_file()
    last = manifest["stages"][-1]["sources"]
    assert sum(books["kept"] for books in last.values()) == len(documents)
    assert sum(books["kept_bytes"] for books in last.values()) == sum(len(d.text.encode()) for d in documents)
    assert last["alpha"]["heldout"] == sum(d.meta["split"] == "heldout" for d in documents if d.source == "alpha") > 0
    assert manifest["tokens"]["counts_by_split"]["train"]["alpha"]["documents"] > 0
    assert (whole / "tokenizer" / "tokenizer.json").is_file()
    assert list((whole / "tokens" / "heldout").glob("*.arrayrecord"))
    assert not [path for path in whole.rglob("*") if path.suffix in (".tmp", ".partial")]


def test_the_manifest_knows_no_place_and_no_time(whole: Path) -> None:
    text = (whole / "manifest.json").read_text()
    assert str(whole) not in text and "LocalPool" not in text and time.strftime("%Y-") not in text


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_never_change_a_byte(whole: Path, tmp_path: Path, workers: int) -> None:
    build_dataset(make_config(tmp_path / "dataset", workers=workers))
    assert file_hashes(tmp_path / "dataset") == file_hashes(whole)


def test_a_second_run_does_nothing(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    build_dataset(make_config(whole))
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


@pytest.mark.parametrize(
    ("workers", "attempts"),
    [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow), pytest.param(3, 3, marks=pytest.mark.slow)],
)
def test_kill_at_any_moment_and_run_again_gives_the_same_bytes(
    whole: Path, tmp_path: Path, workers: int, attempts: int
) -> None:
    moments = random.Random(workers)
    started = time.monotonic()
    assert _run(tmp_path / "uninterrupted", workers).wait() == 0
    seconds = time.monotonic() - started  # of this machine today
    expected = file_hashes(whole)
    assert file_hashes(tmp_path / "uninterrupted") == expected
    for attempt in range(attempts):
        dataset = tmp_path / f"dataset{attempt}"
        kills = 0
        for _ in range(5):
            process = _run(dataset, workers)
            try:
                assert process.wait(timeout=moments.uniform(0.2, 0.6) * seconds) == 0
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
        assert kills >= 1
        assert _run(dataset, workers).wait() == 0
        found = file_hashes(dataset)
        assert {name for name in found if found[name] != expected.get(name)} == set()
        assert found.keys() == expected.keys()


def _run(dataset: Path, workers: int) -> subprocess.Popen:
    # The pause makes reading and cleaning long enough to be hit; it is no setting that shapes bytes.
    command = [sys.executable, "-m", "tests.data.build_cases", str(dataset), str(workers), "0.002"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def test_a_worker_killed_in_the_middle_of_a_shard_leaves_no_trace(whole: Path, tmp_path: Path) -> None:
    marker = tmp_path / "killed"
    stages = (Shorten(killed=marker), *make_config(tmp_path).stages[1:])
    build_dataset(make_config(tmp_path / "dataset", workers=2, stages=stages))
    assert marker.exists() and file_hashes(tmp_path / "dataset") == file_hashes(whole)


class Killed(BaseException):
    """Stands for kill -9: nothing catches it, and no file operation works after it."""


def test_a_death_before_every_single_file_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(
        tmp_path / "expected",
        sources=(Invented(name="alpha", num_shards=1, documents_a_shard=20),),
        stages=(Shorten(), HeldOut(fraction=0.3)),
        tokenizer=None,
    )
    count = _build_dying_at(None, config, monkeypatch)
    expected = file_hashes(tmp_path / "expected")
    assert count > 30
    for operation in range(count):
        dataset = tmp_path / str(operation)
        with pytest.raises(Killed):
            _build_dying_at(operation, replace(config, path=str(dataset)), monkeypatch)
        build_dataset(replace(config, path=str(dataset)))
        assert file_hashes(dataset) == expected, f"died before file operation {operation}"


def _build_dying_at(operation: int | None, config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> int:
    """Build and die before the file operation of this number; the number of operations seen."""
    seen = 0

    def dying(real):
        def call(*arguments, **options):
            nonlocal seen
            if operation is not None and seen >= operation:
                raise Killed
            seen += 1
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((Path, "rename"), (Path, "replace"), (Path, "unlink"), (Path, "mkdir"), (os, "link"),
                            (os, "fsync"), (shutil, "rmtree"), (ShardWriter, "flush")):  # fmt: skip
            patch.setattr(owner, name, dying(getattr(owner, name)))
        build_dataset(config)
    return seen


def test_only_what_changed_is_done_again(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    build_dataset(make_config(tmp_path / "dataset"))
    changed = make_config(tmp_path / "dataset", stages=(Shorten(least=485), *make_config(tmp_path).stages[1:]))
    capsys.readouterr()
    build_dataset(changed)
    printed = capsys.readouterr().out
    assert "building what is not up to date: the config changed\n" in printed
    assert "read-alpha           done before" in printed and "shorten              done before" not in printed
    build_dataset(replace(changed, path=str(tmp_path / "fresh")))
    assert file_hashes(tmp_path / "dataset") == file_hashes(tmp_path / "fresh")


def test_another_source_reads_only_itself(tmp_path: Path) -> None:
    config = make_config(tmp_path / "dataset", stages=(), tokenizer=None)
    build_dataset(config)
    more = replace(config, sources=(*config.sources, Invented(name="gamma", num_shards=1)))
    build_dataset(more)
    log = (tmp_path / "dataset" / "build.log").read_text()
    assert log.count("read-alpha           done before") == 1
    assert len(read_manifest(tmp_path / "dataset")["stages"]) == 3
    build_dataset(config)
    left = {path.name.rpartition("-")[0] for path in (tmp_path / "dataset" / "stages").iterdir()}
    assert left == {"read-alpha", "read-beta", "dropped"}  # gamma's folder went with it


def test_keys_follow_settings_and_not_workers_or_place(tmp_path: Path) -> None:
    def keys(**changes) -> list[str]:
        return [step.key for step in plan(make_config(**{"path": tmp_path / "a", **changes}))]

    base = keys()
    assert keys(path=tmp_path / "b", workers=7) == base
    assert keys(seed=1)[:-1] == base[:-1] and keys(seed=1)[-1] != base[-1]
    assert keys(stages=(HeldOut(),))[:2] == base[:2]
    assert not set(keys(shard_bytes=7_000)) & set(base)


def test_a_truncated_file_is_found_and_made_again(tmp_path: Path) -> None:
    dataset = build_dataset(make_config(tmp_path / "dataset", tokenizer=None))
    expected = file_hashes(dataset)
    shard = next((dataset / "documents").iterdir())
    with shard.open("r+b") as stream:
        stream.truncate(100)
    build_dataset(make_config(dataset, tokenizer=None))
    assert file_hashes(dataset) == expected
    (dataset / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json: cannot be read .*remove it and build again"):
        build_dataset(make_config(dataset, tokenizer=None))


def test_books_that_do_not_balance_stop_the_build(tmp_path: Path) -> None:
    config = make_config(tmp_path / "dataset", stages=(Lose(least=0),), tokenizer=None)
    with pytest.raises(ValueError, match=r"lose: says 168 kept, but its shards hold 170 documents"):
        build_dataset(config)
    with pytest.raises(ValueError, match="no whole dataset here"):
        read_manifest(tmp_path / "dataset")


def test_bad_configs_are_one_clear_line(tmp_path: Path) -> None:
    for changes, message in (
        ({"sources": ()}, "sources is empty"),
        ({"sources": (Invented(name="a"), Invented(name="a"))}, "two sources are called 'a'"),
        ({"sources": (Invented(name="a:b"),)}, "'a:b' is no name for a source"),
        ({"shard_bytes": 0}, "shard_bytes must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            make_config(tmp_path, **changes)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match=r"cannot be written .* set another data.path"):
        build_dataset(make_config(tmp_path / "dataset"))


def test_a_file_where_the_dataset_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataset").write_text("not a folder")
    with pytest.raises(ValueError, match=r"cannot be written .* set another data.path"):
        build_dataset(make_config(tmp_path / "dataset"))


def test_a_full_disk_leaves_nothing_that_is_taken_for_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import data.tables

    real = data.tables.ShardWriter.flush
    calls = 0

    def flush(self) -> None:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self)

    config = make_config(tmp_path / "dataset", tokenizer=None)
    with monkeypatch.context() as patch:
        patch.setattr(data.tables.ShardWriter, "flush", flush)
        with pytest.raises(ValueError, match="the disk is full"):
            build_dataset(config)
    build_dataset(config)
    build_dataset(replace(config, path=str(tmp_path / "other")))
    assert file_hashes(tmp_path / "dataset") == file_hashes(tmp_path / "other")


@pytest.mark.skipif(not shutil.which("unshare"), reason="no unshare: cannot make a small disk")
def test_a_disk_that_is_really_full(tmp_path: Path, whole: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    build = f"{sys.executable} -m tests.data.build_cases {disk}/dataset 2 0"
    script = (
        f"mount -t tmpfs -o size=120k tmpfs {disk} || exit 99; {build}; echo first $?; "
        f"mount -o remount,size=50m {disk} && {build}; echo second $?; cp -r {disk}/dataset {tmp_path}/copy"
    )
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
    if done.returncode == 99 or "unshare failed" in done.stderr:
        pytest.skip("this machine lets nobody mount a small disk")
    assert "first 1" in done.stdout and "second 0" in done.stdout, done.stdout + done.stderr
    assert "the disk is full" in done.stderr.strip().splitlines()[-1]
    assert file_hashes(tmp_path / "copy") == file_hashes(whole)


def test_a_dataset_built_elsewhere_is_taken_as_it_is(tmp_path: Path, whole: Path) -> None:
    shutil.copytree(whole, tmp_path / "copy", ignore=shutil.ignore_patterns("stages", "build.log"))
    elsewhere = make_config(tmp_path / "copy", seed=7, rebuild=False, sources=(Unreachable(name="gone"),))
    before = file_hashes(tmp_path / "copy")
    assert build_dataset(elsewhere) == tmp_path / "copy" and file_hashes(tmp_path / "copy") == before
    next((tmp_path / "copy" / "documents").iterdir()).unlink()
    with pytest.raises(ValueError, match=r"documents/.* is missing; copy the dataset again"):
        build_dataset(elsewhere)
    with pytest.raises(ValueError, match="no whole dataset here"):
        build_dataset(make_config(tmp_path / "nothing", rebuild=False))


class Unreachable(Invented):
    def inputs_key(self):
        raise ValueError("no such input")


def test_two_builds_of_one_dataset_wait_for_each_other(tmp_path: Path, whole: Path) -> None:
    command = [sys.executable, "-m", "tests.data.build_cases", str(tmp_path / "dataset"), "1", "0.002"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum("another process is building" in text for text in printed) == 1
    assert file_hashes(tmp_path / "dataset") == file_hashes(whole)


def test_a_source_must_name_itself_in_its_documents(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"must name it and have an id that begins with 'wrong:'"):
        build_dataset(make_config(tmp_path, sources=(_misnamed(),), engine=LocalPool(workers=1)))


def test_two_documents_with_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"two documents of the source 'twice' have the id 'twice:1'"):
        build_dataset(make_config(tmp_path, sources=(_Twice(name="twice"),), engine=LocalPool(workers=1)))


class _Misnamed(Invented):
    def documents(self, shard: int):
        yield Document(id="other:1", text="text", source="other")


class _Twice(Invented):
    def documents(self, shard: int):
        yield Document(id="twice:1", text=f"text {shard}", source="twice")


def _misnamed() -> Source:
    return _Misnamed(name="wrong")


def test_the_manifest_is_json_with_sorted_keys(whole: Path) -> None:
    text = (whole / "manifest.json").read_text()
    assert json.dumps(json.loads(text), indent=2, sort_keys=True, ensure_ascii=False) + "\n" == text
