"""python -m data.main: what it prints, and how it fails."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from data import main as command
from data.loader import LoaderConfig
from tests.data.build_cases import make_config


@dataclasses.dataclass(frozen=True)
class Train:
    num_steps: int = 50


@dataclasses.dataclass(frozen=True)
class Config:
    data: object
    loader: object = LoaderConfig(seq_len=64, global_batch_size=4, weights=(("alpha", 1.0), ("beta", 3.0)))
    train: object = Train()


def test_it_builds_and_sums_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    import train.config

    monkeypatch.setattr(train.config, "load_config", lambda path: Config(make_config(tmp_path / "dataset")))
    assert command.main(["--config", "any", f"data.path={tmp_path}/other", "data.stages.shorten.least=470"]) == 0
    printed = capsys.readouterr().out
    assert f"dataset {tmp_path}/other: whole after" in printed
    assert "read              200 documents" in printed and "too_short (shorten)" in printed
    assert "tokens of alpha" in printed and "of them held out" in printed
    assert "50 steps of 4 rows of 64 will see" in printed
    assert re.search(r"planned +[\d.]+ epochs of beta, 7\d.\d%", printed)
    assert command.main(["--config", "any", f"data.path={tmp_path}/other", "data.stages.shorten.least=470"]) == 0
    assert "whole after" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "configs/missing.py"], "no config at 'configs/missing.py'"),
        (["--config", "configs/quickstart.py", "data.pth=x"], "did you mean 'path'?"),
        (["--config", "configs/quickstart.py", "data.path=tests/conftest.py"], "cannot be written"),
        (["--config", "configs/quickstart.py", "data.sources.prose.packages=('nope',)"], "'nope' is not installed"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_one(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert command.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
