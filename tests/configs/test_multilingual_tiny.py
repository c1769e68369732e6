"""configs/multilingual_tiny.py trains, and tells how well it knows each of its languages."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.multilingual_tiny import LANGUAGES


@pytest.mark.slow
def test_four_steps_have_bits_per_byte_of_ten_languages(tmp_path: Path) -> None:
    if importlib.util.find_spec("eld") is None:
        pytest.skip("eld==1.0.6 is not installed: no sentences in ten languages")
    settings = {
        "data.path": tmp_path / "dataset",
        "run_dir": tmp_path / "run",
        "train.num_steps": 4,
        "train.tensorboard": False,
        "schedule.warmup_steps": 1,
        "checkpoint.every_steps": 4,
        "evaluation.every_steps": 4,
        "evaluation.max_bytes": 2048,
        "evaluation.sample_tokens": 2,
    }
    command = [sys.executable, "-m", "train.main", "--config", "configs/multilingual_tiny.py"]
    command += [f"{name}={value}" for name, value in settings.items()]
    done = subprocess.run(command, env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = {name: value for line in lines for name, value in line.items()}
    prefix = "heldout/bits_per_byte/eld:"
    assert {name.removeprefix(prefix) for name in found if name.startswith(prefix)} == set(LANGUAGES)
    assert all(0 < found[prefix + language] < 16 for language in LANGUAGES)  # untrained: 12 bits a piece
