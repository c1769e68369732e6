"""A checkpoint is what the state was when it was saved, on any mesh; half ones are removed, others' are refused."""

import shutil
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from etils import epath
from etils.epath.backend import fsspec_backend
from orbax.checkpoint import v1 as ocp

from models.sharding import MeshConfig
from tests.train.tiny import Trainer, random_batch
from train.checkpoint import CheckpointConfig, Checkpoints, Position
from train.meeting import Processes
from train.tiers import Copier, copy_whole, open_folder, whole_steps

IDENTITY = {"model": {"num_layers": 2, "norm": {"eps": 1e-6}}, "tokenizer": "abc", "ema": False}


class InFolder:
    """A file system that takes the paths of a store, gs://BUCKET/FILE."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        method = getattr(self._inner, name)

        def call(*paths, **options):
            return method(*(p.removeprefix("gs://") if isinstance(p, str) else p for p in paths), **options)

        return call


def files(folder):
    """All files under a folder."""
    return [path for path in Path(folder).rglob("*") if path.is_file()]


def damage(checkpoint):
    """Cuts the arrays of a checkpoint short."""
    for path in (checkpoint / "params").rglob("*"):
        if path.is_file() and path.stat().st_size > 200:
            path.write_bytes(path.read_bytes()[:100])


@pytest.fixture(scope="module")
def trainer():
    return Trainer(num_steps=100)


def test_a_save_under_way_keeps_its_values_while_training_goes_on(trainer, tmp_path):
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        trainer.run(random_batch(0))
        saved = jax.tree.map(np.array, trainer.state)
        checkpoints.save(1, trainer.state, IDENTITY)
        for step in range(5):
            trainer.run(random_batch(step))  # donates the buffers that are being written
        checkpoints.wait()
        restored = checkpoints.restore(1, trainer.abstract)
    jax.tree.map(np.testing.assert_array_equal, restored, saved)


def test_restored_on_another_mesh_the_values_are_the_same(trainer, tmp_path):
    other = Trainer(MeshConfig(fsdp=4, tensor=2), compiled=False)
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(1, trainer.state, IDENTITY)
        checkpoints.wait()
        restored = checkpoints.restore(1, other.abstract)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.array(a), np.array(b)), restored, trainer.state)
    assert restored.params["embedding"].sharding == other.abstract.params["embedding"].sharding


def test_half_written_ones_go_and_only_the_newest_stay(trainer, tmp_path):
    with Checkpoints(tmp_path, CheckpointConfig(keep=2)) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, trainer.state, IDENTITY)
    (tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir()  # what a kill during a save leaves
    with Checkpoints(tmp_path, CheckpointConfig(keep=2)) as checkpoints:
        assert checkpoints.latest == 3
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]


def test_a_checkpoint_of_another_model_is_refused_in_one_line(trainer, tmp_path):
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(1, trainer.state, IDENTITY)
        checkpoints.wait()
        checkpoints.check(1, IDENTITY)
        other = IDENTITY | {"model": {"num_layers": 3, "norm": {"eps": 1e-6}}}
        with pytest.raises(ValueError, match=r"has model\.num_layers=2, this config has 3; set it back") as error:
            checkpoints.check(1, other)
        assert "\n" not in str(error.value)


def test_a_damaged_checkpoint_is_named(trainer, tmp_path):
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(1, trainer.state, IDENTITY)
        checkpoints.wait()
        damage(tmp_path / "checkpoints" / "1")
        with pytest.raises(ValueError, match="could not be read"):
            checkpoints.restore(1, trainer.abstract)


def test_the_one_before_a_damaged_checkpoint_is_taken_and_the_damaged_one_kept(trainer, tmp_path):
    said = []
    with Checkpoints(tmp_path, CheckpointConfig(keep=2), tell=said.append) as checkpoints:
        for step in (1, 2):
            saved = jax.tree.map(np.array, trainer.state) if step == 1 else saved
            checkpoints.save(step, trainer.state, IDENTITY, Position(step=step, row=8 * step, tokens_per_row=10.0))
            trainer.run(random_batch(step))
    damage(tmp_path / "checkpoints" / "2")
    with Checkpoints(tmp_path, CheckpointConfig(keep=2), tell=said.append) as checkpoints:
        state, position = checkpoints.resume(trainer.abstract, IDENTITY)
        assert (position.step, position.row, position.row_at(5.0)) == (1, 8, 16)
        jax.tree.map(np.testing.assert_array_equal, state, saved)
        assert "2 could not be read" in said[0] and "kept as 2.unreadable, and the one before it is taken" in said[0]
        checkpoints.save(2, state, IDENTITY, position)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2", "2.unreadable"]


def test_a_fast_folder_has_them_often_and_the_durable_one_has_whole_copies(trainer, tmp_path):
    config = CheckpointConfig(keep=2, every_steps=2, local=str(tmp_path / "fast"), local_every_steps=1)
    with Checkpoints(tmp_path / "run", config) as checkpoints:
        for step in range(1, 6):
            assert checkpoints.due(step)
            checkpoints.save(step, trainer.state, IDENTITY)
    names = lambda folder: sorted(path.name for path in folder.iterdir())  # noqa: E731
    assert names(tmp_path / "fast" / "run") == ["4", "5"]
    assert names(tmp_path / "run" / "checkpoints") == ["4", "5"]  # every second one, and the last
    shutil.rmtree(tmp_path / "fast")  # the machine is gone
    with Checkpoints(tmp_path / "run", config) as checkpoints:
        state, position = checkpoints.resume(trainer.abstract, IDENTITY)
    assert position.step == 5
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.array(a), np.array(b)), state, trainer.state)


def test_where_none_can_be_read_all_stay_where_they_are(trainer, tmp_path):
    """What is in the way may pass, too little memory or a disk that is not there: the next start finds them."""
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, trainer.state, IDENTITY)
    for step in ("1", "2"):
        damage(tmp_path / "checkpoints" / step)
    for _ in range(2):
        with (
            Checkpoints(tmp_path, CheckpointConfig()) as checkpoints,
            pytest.raises(
                ValueError, match=r"no checkpoint in .* \(checkpoint .*/2 could not be read .* left as they are"
            ),
        ):
            checkpoints.resume(trainer.abstract, IDENTITY)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]


def test_of_a_damaged_fast_copy_the_durable_one_is_taken(trainer, tmp_path):
    said = []
    config = CheckpointConfig(keep=2, every_steps=2, local=str(tmp_path / "fast"), local_every_steps=1)
    with Checkpoints(tmp_path / "run", config) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, trainer.state, IDENTITY)
    damage(tmp_path / "fast" / "run" / "2")
    with Checkpoints(tmp_path / "run", config, tell=said.append) as checkpoints:
        _, position = checkpoints.resume(trainer.abstract, IDENTITY)
    assert position.step == 2 and len(said) == 1 and "fast/run/2 could not be read" in said[0]
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["2"]


def test_all_processes_begin_where_process_0_does(tmp_path):
    """Though one of them sees a shared disk as it was before."""

    class Second(Processes):
        def exchange(self, name, value, **_):
            return [{"newest checkpoint": 7}.get(name, value), value]

    with Checkpoints(tmp_path, CheckpointConfig(), processes=Second()) as checkpoints:
        assert checkpoints.latest == 7 and checkpoints.steps() == []


def test_copies_on_an_object_store_count_when_their_mark_is_there(trainer, tmp_path, monkeypatch):
    """gs://, with a folder in the place of the store."""
    store = fsspec.filesystem("dir", path=str(tmp_path / "store"), fs=fsspec.filesystem("file", auto_mkdir=True))
    here = type(fsspec_backend).fs
    monkeypatch.setattr(
        type(fsspec_backend),
        "fs",
        lambda self, path: InFolder(store) if str(path).startswith("gs://") else here(self, path),
    )
    (tmp_path / "store").mkdir()
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, trainer.state, IDENTITY)
    fast, durable = epath.Path(tmp_path / "checkpoints"), open_folder("gs://bucket/run")
    copier = Copier(fast, durable, keep=1)
    for step in (1, 2):
        copier.start(step)
    copier.wait()
    assert whole_steps(durable) == [2]
    there = {str(path.relative_to(tmp_path / "store" / "bucket/run/2")) for path in files(tmp_path / "store")}
    assert there == {str(path.relative_to(fast / "2")) for path in files(fast / "2")} | {"commit_success.txt"}
    (durable / "2" / "commit_success.txt").unlink()  # as a kill during the copy leaves it
    assert whole_steps(durable) == []
    copier.start(2)
    copier.wait()
    assert whole_steps(durable) == [2]


def test_the_first_save_that_fails_is_told_and_the_second_ends_the_run(trainer, tmp_path):
    said = []
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(), tell=said.append)
    (tmp_path / "checkpoints").rmdir()
    (tmp_path / "checkpoints").write_text("a file stands in the way")
    checkpoints.save(1, trainer.state, IDENTITY)
    with pytest.raises(OSError, match="checkpoint of step 2 could not be written"):
        checkpoints.save(2, trainer.state, IDENTITY)
        checkpoints.save(3, trainer.state, IDENTITY)
    assert said[0].startswith("warning: the checkpoint of step 1 could not be written") and len(said) == 1


def test_a_disk_without_room_is_told_before_it_is_full(trainer, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("train.tiers.free_bytes", lambda folder: 1000)
    with Checkpoints(tmp_path, CheckpointConfig(), tell=said.append) as checkpoints:
        checkpoints.save(1, trainer.state, IDENTITY)
    assert "0.00 GiB are free in" in said[0] and "make room, or lower checkpoint.keep=2" in said[0]


def test_a_save_that_cannot_be_written_is_an_error_with_advice(trainer, tmp_path):
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        (tmp_path / "checkpoints").rmdir()
        (tmp_path / "checkpoints").write_text("a file stands in the way")
        with pytest.raises(OSError, match="checkpoint of step 1 could not be written"):
            checkpoints.save(1, trainer.state, IDENTITY)
            checkpoints.wait()


def test_a_save_that_fails_alone_ends_nothing(trainer, tmp_path, monkeypatch):
    """Room was made in time: the save after it is whole, and so is the run."""
    said, save = [], ocp.training.Checkpointer.save_checkpointables_async

    class Full:
        def result(self):
            raise OSError("no space left on device")

    def fail_step_1(self, step, *arguments, **options):
        return Full() if step == 1 else save(self, step, *arguments, **options)

    monkeypatch.setattr(ocp.training.Checkpointer, "save_checkpointables_async", fail_step_1)
    with Checkpoints(tmp_path, CheckpointConfig(), tell=said.append) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, trainer.state, IDENTITY)
    assert whole_steps(checkpoints.folder) == [3, 2]
    assert len(said) == 1 and said[0].startswith("warning: the checkpoint of step 1 could not be written")


def test_a_copy_that_fails_alone_is_told_and_the_next_one_is_made(trainer, tmp_path, monkeypatch):
    said = []
    config = CheckpointConfig(keep=2, every_steps=1, local=str(tmp_path / "fast"), local_every_steps=1)

    def full(source, target):
        if source.name == "1":
            raise OSError("no space left on device")
        copy_whole(source, target)

    monkeypatch.setattr("train.tiers.copy_whole", full)
    with Checkpoints(tmp_path / "run", config, tell=said.append) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, trainer.state, IDENTITY)
            checkpoints._settle()
    assert whole_steps(checkpoints.durable) == [2]
    assert len(said) == 1 and "a checkpoint could not be copied to" in said[0]
