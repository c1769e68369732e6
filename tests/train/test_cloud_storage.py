"""Checkpoints straight to `gs://`: kept, pruned, passed over where they are half-written, and the same losses."""

from dataclasses import replace
from pathlib import Path

import pytest
from etils import epath

from tests.gcs_server import gcs_server
from tests.train.mishaps import bits
from tests.train.test_processes import Runs
from tests.train.tiny import losses, run_config
from train.checkpoint import CheckpointConfig
from train.loop import train
from train.mirror import Mirror
from train.tiers import COMMITTED

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bucket():
    """The URL of a bucket on a local server."""
    with gcs_server() as url:
        yield url


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """Losses of a run that nothing happened to, with its checkpoints in a folder."""
    config = run_config(corpus, run_dir=str(tmp_path_factory.mktemp("whole") / "run"))
    assert train(config, corpus / "dataset") == 0
    return losses(Path(config.run_dir))


def kept(folder: epath.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if (path / COMMITTED).exists())


def test_a_run_goes_on_from_the_newest_whole_checkpoint_of_a_bucket(bucket, whole, corpus, tmp_path, own_mesh, capsys):
    folder = epath.Path(f"{bucket}/one/checkpoints")
    config = run_config(
        corpus, run_dir=str(tmp_path / "run"), checkpoint=CheckpointConfig(every_steps=2, keep=3, path=str(folder))
    )
    for _ in range(2):
        assert train(config, corpus / "dataset") == 0
        assert kept(folder) == ["10", "12", "8"]
        for step in ("10", "12"):
            (folder / step / COMMITTED).unlink()  # as a kill in the middle of a save leaves it
    assert "going on after step 8" in capsys.readouterr().out and bits(losses(tmp_path / "run")) == bits(whole)


def test_a_fast_folder_is_copied_to_a_bucket_and_may_be_lost(bucket, whole, corpus, tmp_path, own_mesh, capsys):
    folder = epath.Path(f"{bucket}/tiers/checkpoints")
    places = CheckpointConfig(
        every_steps=4, keep=2, path=str(folder), local=str(tmp_path / "lost"), local_every_steps=1
    )
    config = run_config(corpus, run_dir=str(tmp_path / "run"), checkpoint=places)
    for local in ("lost", "new"):
        moved = replace(config, checkpoint=replace(places, local=str(tmp_path / local)))
        assert train(moved, corpus / "dataset") == 0
        assert kept(folder) == ["12", "8"]
        (folder / "12").rmtree()
    assert "going on after step 8" in capsys.readouterr().out and bits(losses(tmp_path / "run")) == bits(whole)


def test_the_rest_of_a_runs_folder_is_kept_beside_its_checkpoints_and_comes_back(bucket, tmp_path):
    folder, run_dir = epath.Path(f"{bucket}/rest"), tmp_path / "run"
    (run_dir / "tokenizer").mkdir(parents=True)
    (run_dir / "tokenizer" / "tokenizer.json").write_text("{}")
    for told in ("one\n", "one\ntwo\n"):
        (run_dir / "metrics.jsonl").write_text(told)
        Mirror(run_dir, folder).copy()
    (folder / "4").mkdir(parents=True)
    (folder / "4" / COMMITTED).write_text("")
    assert not Mirror(run_dir, folder).fetch()  # they are here
    assert Mirror(tmp_path / "new", folder).fetch()
    assert (tmp_path / "new" / "metrics.jsonl").read_text() == "one\ntwo\n"
    assert (tmp_path / "new" / "tokenizer" / "tokenizer.json").read_text() == "{}"


@pytest.mark.long
def test_two_processes_killed_in_a_save_go_on_from_a_bucket(bucket, corpus, tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("two"), corpus)
    code, plain = runs.start("plain", 2)
    assert code == 0
    code, folder = runs.start("saving", 2, f"checkpoint.path={bucket}/two", mishap="save:8:0", restarts=1)
    assert code == 0 and bits(losses(folder)) == bits(losses(plain))
    assert kept(epath.Path(f"{bucket}/two")) == ["12", "8"]
