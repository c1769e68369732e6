"""One step function, three backends: the real step compiles for TPUs and for H100s that are not here.

The compilers live in environments of their own; their interpreters are named by SLUICE_TPU_PYTHON and
SLUICE_CUDA_PYTHON (`pip install -r launch/requirements-tpu.txt`, or `-cuda.txt`).
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

from train.compile import fitted, number_of_chips, parse_topology
from train.config import load_config

ROOT = Path(__file__).parents[2]
# pretrain_8b in small: same parts (splash or cuDNN, remat, vocabulary chunks, fsdp), fewer and narrower layers
SMALL = [
    "model.num_layers=4",
    "model.embed_dim=512",
    "model.mlp_dim=1024",
    "model.num_kv_heads=2",  # before num_heads: overrides are checked one by one
    "model.num_heads=4",
    "model.vocab_size=4096",
    "train.vocab_chunk=1024",
    "loader.seq_len=512",
]


def compile_for(variable: str, topology: str, *overrides: str) -> str:
    interpreter = os.environ.get(variable)
    if not interpreter:
        pytest.skip(f"{variable} is not set: no compiler for {topology}")
    command = [
        interpreter,
        "-m",
        "train.main",
        "--config",
        "configs/pretrain_8b.py",
        "--dry-run",
        "--compile",
        topology,
    ]
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "PYTHONPATH")}
    done = subprocess.run(
        [*command, *SMALL, *overrides], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("topology", "device"), [("v5e:4x4", "TPU v5 lite"), ("v6e:4x4", "TPU v6 lite")])
def test_the_step_compiles_for_tpu_with_splash(topology: str, device: str):
    text = compile_for("SLUICE_TPU_PYTHON", topology)
    assert f"compiled for 16 x {device}" in text
    assert re.search(r"attention    splash", text) and "tpu_custom_call" in text
    gathers = re.search(r"all-gather +([\d,]+) x", text)
    assert gathers and int(gathers[1].replace(",", "")) >= 4 * 7  # each layer's projections, at least once
    assert "temporaries" in text and "NOT FIT" not in text


@pytest.mark.slow
def test_the_step_compiles_for_h100_with_cudnn_and_segment_offsets():
    text = compile_for("SLUICE_CUDA_PYTHON", "h100:8", "mesh.fsdp=8", "loader.global_batch_size=32")
    assert "compiled for 8 x NVIDIA H100" in text
    assert re.search(r"attention    cudnn_packed", text)
    assert "__cudnn$fmhaSoftmax" in text and "__cudnn$fmhaSoftmaxBackward" in text
    assert re.search(r"all-gather +[\d,]+ x", text) and "temporaries" in text


def test_topologies_are_read_or_refused():
    assert parse_topology("v6e:16x16") == ("v6e", (16, 16)) and number_of_chips("v5p:4x4x4") == 64
    for bad in ("v6e", "v9:4x4", "h100:0", "v6e:ax2"):
        with pytest.raises(ValueError, match="expected CHIP:SHAPE"):
            parse_topology(bad)


def test_a_pods_config_is_fitted_to_fewer_chips_with_as_many_rows_a_device(capsys: pytest.CaptureFixture):
    config = load_config("configs/pretrain_8b.py")
    small = fitted(config, 8, "h100:8")
    assert (small.mesh.fsdp, small.loader.global_batch_size) == (8, 8 * config.loader.global_batch_size // 256)
    assert "h100:8 has 8 chips and the config's mesh 256" in capsys.readouterr().out
    assert fitted(config, 256, "v6e:16x16") is config
