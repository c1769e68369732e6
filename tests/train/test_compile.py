"""One step function, three backends: the real step compiles for TPUs and for H100s that are not here.

The compilers live in environments of their own; their interpreters are named by SLUICE_TPU_PYTHON and
SLUICE_CUDA_PYTHON (`pip install -r launch/requirements-tpu.txt`, or `-cuda.txt`). Layers are few and narrow here, for
time, and so narrow that parts are less than a tile: what whole models send is held by tests/bench/test_traffic.py.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from train.chips import parse_topology
from train.compile import fitted
from train.config import load_config

ROOT = Path(__file__).parents[2]
# the pods' configs in small: same parts (splash or cuDNN, remat, vocabulary chunks), fewer and narrower layers
SMALL = [
    "model.num_layers=2",
    "model.embed_dim=512",
    "model.mlp_dim=1024",
    "model.num_kv_heads=2",  # before num_heads: overrides are checked one by one
    "model.num_heads=4",
    "model.vocab_size=4096",
    "train.vocab_chunk=1024",
    "loader.seq_len=512",
]
B1, B8, QLORA = "configs/pretrain_1b.py", "configs/pretrain_8b.py", "configs/llama3_8b_qlora.py"
TPU = {
    "1B, fsdp": (B1, "v5e:4x4", ["mesh.fsdp=16"]),
    "1B, data and tensor": (B1, "v5p:2x2x2", ["mesh.data=4", "mesh.fsdp=1", "mesh.tensor=2"]),
    "8B, fsdp": (B8, "v6e:4x4", ["mesh.fsdp=16"]),
    "8B, fsdp and tensor": (B8, "v4:2x2x2", ["mesh.fsdp=4", "mesh.tensor=2"]),
    "8B, context": (B8, "v6e:4x4", ["mesh.fsdp=4", "mesh.context=4"]),
    "8B, two slices": (B8, "2*v6e:4x4", ["mesh.data=2", "mesh.fsdp=16"]),
    "8B, two cores a chip": (B8, "tpu7x:2x2x1", ["mesh.fsdp=8"]),
    "QLoRA 8B, fsdp": (QLORA, "v6e:4x4", ["mesh.fsdp=16"]),
    "QLoRA 8B, two slices": (QLORA, "2*v5e:4x4", ["mesh.data=2", "mesh.fsdp=8", "mesh.tensor=2"]),
}
CUDA = {
    "1B, fsdp": (B1, "h100:8", ["mesh.fsdp=8"]),
    "1B, data": (B1, "h100:8", ["mesh.data=8", "mesh.fsdp=1"]),
    "8B, data and fsdp": (B8, "h100:8", ["mesh.data=2", "mesh.fsdp=4"]),
    "8B, fsdp and tensor": (B8, "h100:8", ["mesh.fsdp=4", "mesh.tensor=2"]),
    "8B, context": (B8, "h100:8", ["mesh.fsdp=4", "mesh.context=2"]),
    "QLoRA 8B, fsdp": (QLORA, "h100:8", ["mesh.fsdp=8"]),
}


def compile_all(variable: str, cases: dict) -> dict[str, dict]:
    """What the compiler of one interpreter says of every case, in small, by name."""
    interpreter = os.environ.get(variable)
    if not interpreter:
        pytest.skip(f"{variable} is not set: no compiler for these machines")
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "PYTHONPATH")}
    given = {name: [path, machine, [*SMALL, "train.grad_accum_steps=1", *overrides, "loader.global_batch_size=32"]]
             for name, (path, machine, overrides) in cases.items()}  # fmt: skip
    done = subprocess.run(
        [interpreter, "-m", "tests.train.compile_many", json.dumps(given)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["name"]: line for line in lines}


@pytest.mark.slow
@pytest.mark.long
def test_every_pods_config_compiles_for_its_tpus_with_splash():
    found = compile_all("SLUICE_TPU_PYTHON", TPU)
    assert list(found) == list(TPU)
    for name, one in found.items():
        assert one["device"].startswith("TPU") and one["kernel"] == "splash", name
        assert "tpu_custom_call" in one["custom_calls"], name
        assert bool(one["network"]) == ("two slices" in name), name


@pytest.mark.slow
@pytest.mark.long
def test_every_pods_config_compiles_for_eight_h100s_with_cudnn_and_segment_offsets():
    found = compile_all("SLUICE_CUDA_PYTHON", CUDA)
    assert list(found) == list(CUDA)
    for name, one in found.items():
        assert one["device"].startswith("NVIDIA H100") and one["devices"] == 8, name
        if "context" not in name:
            assert one["kernel"] == "cudnn_packed", name
            assert {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"} <= set(one["custom_calls"]), name
        assert one["network"] == 0, name


def test_topologies_are_read_or_refused():
    assert parse_topology("v6e:16x16").chips == 256 and parse_topology("v5p:4x4x4").devices == 64
    assert parse_topology("2*v5e:4x4").devices == 32 and parse_topology("2*v5e:4x4").domain == 16
    assert parse_topology("tpu7x:2x2x1").devices == 8 and parse_topology("tpu7x:2x2x1").memory == 96 << 30
    assert parse_topology("h100:16").domain == 8 and parse_topology("2*v5e:4x4").name == "2*v5e:4x4"
    for bad in ("v6e", "v9:4x4", "h100:0", "v6e:ax2", "0*v6e:4x4", "2*h100:8"):
        with pytest.raises(ValueError, match="--compile"):
            parse_topology(bad)


def test_launchers_and_plans_know_the_same_chips():
    from launch.machines import CHIPS as LAUNCHED
    from train.chips import CHIPS

    assert list(LAUNCHED) == list(CHIPS)


def test_a_pods_config_is_fitted_to_fewer_chips_with_as_many_rows_a_device(capsys: pytest.CaptureFixture):
    config = load_config("configs/pretrain_8b.py")
    small = fitted(config, parse_topology("h100:8"))
    assert (small.mesh.fsdp, small.loader.global_batch_size) == (8, 8 * config.loader.global_batch_size // 256)
    assert "h100:8 has 8 devices and the config's mesh 256" in capsys.readouterr().out
    assert fitted(config, parse_topology("v6e:16x16")) is config
    slices = fitted(config, parse_topology("2*v6e:8x8"))
    assert (slices.mesh.data, slices.mesh.fsdp, slices.loader.global_batch_size) == (2, 64, 512)
