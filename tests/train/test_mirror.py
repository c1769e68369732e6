"""What is beside the checkpoints outlives the disk of a run."""

import shutil
from dataclasses import replace

import pytest

import train.main
from models.command import use_compile_cache
from tests.train.mishaps import bits
from tests.train.tiny import losses, run_config
from train import mirror
from train.checkpoint import CheckpointConfig
from train.replay import replay


@pytest.fixture
def started(corpus, tmp_path, own_mesh):
    """Starts a run of so many steps whose checkpoints go to another place; returns its folder."""

    def start(steps: int, name: str = "run"):
        config = run_config(
            corpus, run_dir=str(tmp_path / name), checkpoint=CheckpointConfig(every_steps=2, path=str(tmp_path / "far"))
        )
        config = replace(config, train=replace(config.train, num_steps=steps, compilation_cache=""))
        assert train.main.train_together(config, None) == 0
        return tmp_path / name

    yield start
    use_compile_cache("")


def test_a_run_whose_disk_is_gone_goes_on_with_its_metrics_config_and_tokenizer(started, tmp_path):
    before = bits(losses(started(4)))
    shutil.rmtree(tmp_path / "run")
    run_dir = started(6)
    after = bits(losses(run_dir))
    assert sorted(after) == [1, 2, 3, 4, 5, 6] and {step: after[step] for step in before} == before
    copies = tmp_path / "far" / "run"
    names = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()} - {"run.lock"}
    assert {"config.json", "metrics.jsonl", "report.html", "tokenizer/tokenizer.json"} <= names
    assert {str(path.relative_to(copies)) for path in copies.rglob("*") if path.is_file()} == names
    assert all((copies / name).read_bytes() == (run_dir / name).read_bytes() for name in names)
    assert replay(run_dir, 3).loss.hex() == before[3]


def test_a_folder_that_tells_of_more_stays_and_copies_of_another_run_are_not_taken(started, tmp_path):
    run_dir = started(2)
    copies, metrics = tmp_path / "far" / "run", run_dir / "metrics.jsonl"
    ours = mirror.Mirror(run_dir, mirror.open_folder(tmp_path / "far"))
    metrics.write_text(told := metrics.read_text() + "{}\n")
    assert not ours.fetch() and metrics.read_text() == told
    shutil.rmtree(tmp_path / "far" / "2")
    metrics.unlink()
    assert not ours.fetch() and (copies / "metrics.jsonl").exists()


def test_a_copy_that_fails_is_told_once_and_ends_nothing(started, tmp_path, capsys):
    run_dir = started(2)
    (tmp_path / "file").touch()
    ours = mirror.Mirror(run_dir, mirror.epath.Path(tmp_path / "file"))
    for _ in range(2):
        ours.copy()
    assert capsys.readouterr().err.count("warning: the run folder could not be copied to") == 1


def test_a_step_that_the_folder_does_not_know_is_refused_in_one_line(started, tmp_path):
    started(2)
    shutil.rmtree(tmp_path / "far" / "run")
    run_dir = started(4, "another")
    with pytest.raises(ValueError, match=r"--step 2: .* knows of the steps after 2 alone"):
        replay(run_dir, 2)
