"""The command: bad input ends in one line that says what to do, before anything is trained."""

import dataclasses
import sys
import time
from pathlib import Path

import pytest

from data.build import build_dataset
from data.tokenizer_config import TokenizerConfig
from models.command import run_command
from models.sharding import MeshConfig
from tests.train.tiny import run_config, tiny_model, train_config
from train import main as command
from train.loop import check_sizes, train


def told(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command with these arguments."""
    monkeypatch.setattr(sys, "argv", ["main", *arguments])
    with pytest.raises(SystemExit) as exit:
        run_command(command.run)
    out, err = capsys.readouterr()
    return exit.value.code, out, err


def test_the_dry_run_of_llama_2_counts_what_is_trained(monkeypatch, capsys):
    """The figures that PEFT gives for rank 8 on q and v; no array is made."""
    code, out, err = told(monkeypatch, capsys, "--config", "configs/llama2_7b_lora.py", "--dry-run")
    assert code == 0, err
    assert "trainable params: 4,194,304 || all params: 6,742,609,920 || trainable%: 0.0622" in out.splitlines()


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--config", "configs/quickstart.py", "train.num_step=5"], "did you mean 'num_steps'?"),
        (["--config", "configs/quickstart.py", "train.num_steps=0"], "train.num_steps must be at least 1"),
        (["--config", "configs/quickstrat.py"], "did you mean 'configs/quickstart.py'?"),
        (["--config", "configs/quickstart.py", "--profile", "9:3"], "expected A:B with 1 <= A <= B"),
        (["--config", "configs/quickstart.py", "schedule.decay_fraction=2.0"], "must be above 0 and at most 1"),
    ],
)
def test_bad_input_is_one_line_and_a_code(monkeypatch, capsys, arguments, says):
    code, _, err = told(monkeypatch, capsys, *arguments)
    assert code == 1 and says in err and err.startswith("error: ") and err.count("\n") == 1


def test_configs_are_listed_and_printed(monkeypatch, capsys):
    code, out, _ = told(monkeypatch, capsys, "--list-configs")
    assert code == 0 and "configs/quickstart.py" in out
    code, out, _ = told(monkeypatch, capsys, "--config", "configs/quickstart.py", "--print-config", "train.num_steps=7")
    assert code == 0 and '"num_steps": 7' in out


def test_a_mesh_or_accumulation_that_does_not_divide_the_batch_is_refused(corpus, own_mesh):
    with pytest.raises(ValueError, match=r"data\*fsdp=8 does not divide the batch of 4 rows"):
        train(run_config(corpus, mesh=MeshConfig(data=8)), corpus / "dataset")
    with pytest.raises(ValueError, match=r"grad_accum_steps=3 does not divide loader\.global_batch_size=4"):
        check_sizes(run_config(corpus, train=train_config(grad_accum_steps=3)), 600)


def test_a_dataset_with_another_tokenizer_is_refused(corpus, tmp_path, own_mesh):
    with pytest.raises(ValueError, match=r"model\.vocab_size=500 is below the 600 pieces"):
        train(run_config(corpus, model=tiny_model(vocab_size=500)), corpus / "dataset")

    config = run_config(corpus, run_dir=str(tmp_path / "run"), train=train_config(num_steps=2))
    assert train(config, corpus / "dataset") == 0
    other = dataclasses.replace(
        config.data, path=str(tmp_path / "other"), tokenizer=TokenizerConfig(vocab_size=500, num_threads=1)
    )
    with pytest.raises(ValueError, match="is of another run: it has dataset="):
        train(dataclasses.replace(config, train=train_config(num_steps=3)), build_dataset(other))


def test_a_disk_that_cannot_be_written_is_told_in_one_line(corpus, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "tiny_config.py").write_text(
        "from pathlib import Path\nfrom tests.train.tiny import run_config\n"
        f"def get_config():\n    return run_config(Path({str(corpus)!r}))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    code, _, err = told(monkeypatch, capsys, "--config", "tiny_config.py", f"run_dir={tmp_path / 'file'}")
    assert code == 1 and err.splitlines()[-1].startswith("error: ") and "Traceback" not in err


def test_help_and_refusals_answer_at_once():
    start = time.perf_counter()
    with pytest.raises(SystemExit):
        command.parse_arguments(["--help"])
    with pytest.raises(SystemExit):
        command.parse_arguments(["--compile", "v6e:4x4", "--config", "x"])
    assert time.perf_counter() - start < 1.0
    assert Path(command.__file__).read_text().count("\n") < 150
