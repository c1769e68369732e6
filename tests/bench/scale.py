"""Scaling: communication of the compiled step against the ideal of its mesh, restarts, saves, and local processes.

    python -m tests.bench.scale [--only comm|restart|save|processes]

`comm` needs the compilers of launch/requirements-{tpu,cuda}.txt in environments that SLUICE_TPU_PYTHON and
SLUICE_CUDA_PYTHON name; no accelerator. The TPU compiler takes some minutes a mesh.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MESHES = {  # name: (interpreter's variable, config, topology, overrides)
    "v5e fsdp=16": ("SLUICE_TPU_PYTHON", "pretrain_1b", "v5e:4x4", []),
    "v6e fsdp=8 tensor=2": (
        "SLUICE_TPU_PYTHON", "pretrain_1b", "v6e:4x4",
        ["mesh.fsdp=8", "mesh.tensor=2", "loader.global_batch_size=64"],
    ),
    "v6e two slices, data=2 fsdp=16": ("SLUICE_TPU_PYTHON", "pretrain_1b", "2*v6e:4x4", []),
    "h100 fsdp=8": ("SLUICE_CUDA_PYTHON", "pretrain_8b", "h100:8", ["mesh.fsdp=8", "loader.global_batch_size=32"]),
    "h100 fsdp=4 tensor=2": (
        "SLUICE_CUDA_PYTHON", "pretrain_8b", "h100:8",
        ["mesh.fsdp=4", "mesh.tensor=2", "loader.global_batch_size=16"],
    ),
}  # fmt: skip


def purposes(found: list, sizes: dict[str, int]) -> dict[str, float]:
    """Bytes sent by purpose: gathers and reductions, by the mesh axis whose devices take part.

    sizes: of every mesh axis, in their order. An exchange of activations' gradients in place of a table's (all-to-all)
    counts as the reduction that it saves; what a ring sends on to its neighbours to fill a tile, as of its reduction.
    """
    sums: dict[str, float] = {}
    for one in found:
        axis = "network" if one.network else axis_of(one, sizes)
        kind = "gather" if one.kind == "all-gather" else "reduce"
        sums[f"{kind} {axis}"] = sums.get(f"{kind} {axis}", 0.0) + one.sent
    return sums


def axis_of(one: Any, sizes: dict[str, int]) -> str:
    """The mesh axis along which a group lies, all of it or a ring; "several" where it spans more than one."""
    stride = 1
    for name, size in reversed(sizes.items()):
        if size > 1 and one.stride >= stride and one.stride * (one.group - 1) < stride * size:
            return name
        stride *= size
    return "several"


def compiled_traffic(config_name: str, machine: str, overrides: list[str]) -> dict[str, list[float]]:
    """{purpose: [bytes by the compiled program, ideal bytes]}; runs under the interpreter that has the compiler."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    from models.sharding import MESH_AXES, make_mesh
    from train.chips import parse_topology
    from train.collectives import collectives
    from train.compile import compile_step, fitted, topology_devices
    from train.config import apply_overrides, load_config
    from train.cost import ideal_traffic
    from train.plan import describe_run

    topology = parse_topology(machine)
    config = fitted(apply_overrides(load_config(f"configs/{config_name}.py"), overrides), topology)
    mesh = make_mesh(config.mesh, topology_devices(topology))
    sizes = {name: mesh.shape[name] for name in MESH_AXES}
    compiled, _ = compile_step(config, mesh)
    state = describe_run(config, mesh).state
    found = purposes(collectives(compiled.as_text(), topology.domain), sizes)
    ideal = purposes(ideal_traffic(config, state, sizes, topology.domain), sizes)
    return {name: [found.get(name, 0.0), ideal.get(name, 0.0)] for name in sorted(found | ideal)}


def communication() -> dict[str, dict[str, float]]:
    """{mesh: {purpose: compiled bytes / ideal bytes}} of what is more than a thousandth of a mesh's bytes."""
    ratios: dict[str, dict[str, float]] = {}
    for name, (variable, *arguments) in MESHES.items():
        interpreter = os.environ.get(variable)
        if not interpreter:
            print(f"{name:<32} missing: {variable} is not set")
            continue
        environment = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "PYTHONPATH")}
        command = [interpreter, "-m", "tests.bench.scale", "--compile", json.dumps(arguments)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
        traffic = json.loads(done.stdout.splitlines()[-1])
        total = sum(ideal for _, ideal in traffic.values())
        ratios[name] = {}
        for purpose, (found, ideal) in traffic.items():
            if max(found, ideal) > total / 1000:
                ratios[name][purpose] = found / ideal if ideal else math.inf
                print(f"{name:<32} {purpose:<18} {found / 2**20:>10,.1f} MiB, ideal {ideal / 2**20:>10,.1f}: "
                      f"{ratios[name][purpose]:.3f}", flush=True)  # fmt: skip
    return ratios


def restart_seconds(rounds: int = 3) -> float:
    """From the start of the command to the end of the first step of a quickstart that goes on, with a warm cache."""
    with tempfile.TemporaryDirectory() as scratch:
        run, command = Path(scratch) / "run", [sys.executable, "-m", "train.main", "--config", "configs/quickstart.py"]
        command += [f"run_dir={run}", f"train.compilation_cache={scratch}/cache", "train.log_every=1"]
        command += ["checkpoint.every_steps=10", "evaluation.every_steps=100000"]
        if dataset := os.environ.get("SLUICE_QUICKSTART_DATASET"):
            command.append(f"data.path={dataset}")
        times = []
        for round_ in range(rounds + 1):
            begin = time.perf_counter()
            last = last_step(run)
            with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                while last_step(run) <= last and process.poll() is None:
                    time.sleep(0.02)
                seconds = time.perf_counter() - begin
                while last_step(run) < last + 12 and process.poll() is None:
                    time.sleep(0.05)  # so that the next start has a checkpoint and goes on
                process.terminate()
                process.wait()
            if round_:
                times.append(seconds)
                print(f"restart {round_}: first step after {seconds:.1f} s")
        return statistics.median(times)


def last_step(run: Path) -> int:
    """The last step that metrics.jsonl tells of."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def save_block_seconds(rounds: int = 5) -> float:
    """How long a save of 500 MB (parameters and moments of AdamW) keeps the training waiting."""
    import jax
    import jax.numpy as jnp

    from train.checkpoint import CheckpointConfig, Checkpoints
    from train.state import TrainState

    count = jnp.zeros((), jnp.int32)
    arrays = lambda: {f"layer_{i}": jnp.ones((2604, 2000), jnp.float32) for i in range(8)}  # noqa: E731
    state = TrainState(
        step=count, params=arrays(), opt_state=(arrays(), arrays()), ema=None, skipped=count, norm_mean=jnp.zeros(())
    )
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    times = []
    with tempfile.TemporaryDirectory() as scratch:
        checkpoints = Checkpoints(Path(scratch), CheckpointConfig(keep=1))
        for step in range(1, rounds + 2):
            jax.block_until_ready(state)
            begin = time.perf_counter()
            checkpoints.save(step, state, {})
            times.append(time.perf_counter() - begin)
            checkpoints.wait()
        checkpoints.close()
    print(f"save of {size / 1e6:.0f} MB blocks for {', '.join(f'{one:.3f}' for one in times[1:])} s")
    return statistics.median(times[1:])


def weak_scaling(steps: int = 60) -> dict[int, float]:
    """Tokens/s of 1, 2 and 4 local processes, each with the same rows. Two cores cannot carry four processes."""
    rates = {}
    for processes in (1, 2, 4):
        with tempfile.TemporaryDirectory() as scratch:
            command = [sys.executable, "-m", "launch.main", "local", "--processes", str(processes), "--files", scratch]
            command += ["--config", "configs/quickstart.py", f"run_dir={scratch}/run", f"train.num_steps={steps}"]
            command += [f"mesh.data={processes}", f"loader.global_batch_size={4 * processes}", "train.log_every=10"]
            command += [f"checkpoint.every_steps={steps}", f"evaluation.every_steps={steps}"]
            command += ["evaluation.max_final_bytes=4096", "evaluation.sample_tokens=1", "train.tensorboard=False"]
            if dataset := os.environ.get("SLUICE_QUICKSTART_DATASET"):
                command.append(f"data.path={dataset}")
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            lines = (Path(scratch) / "run" / "metrics.jsonl").read_text().splitlines()
            values = [json.loads(line).get("throughput/tokens_per_s") for line in lines]
            rates[processes] = statistics.median(value for value in values if value)
            print(f"{processes} processes: {rates[processes]:,.0f} tokens/s")
    return rates


def main() -> None:
    """The bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("comm", "restart", "save", "processes"))
    parser.add_argument("--compile", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.compile:
        print(json.dumps(compiled_traffic(*json.loads(arguments.compile))))
        return
    result: dict = {}
    if arguments.only in (None, "comm"):
        result["comm_over_ideal"] = {
            mesh: {purpose: round(ratio, 3) for purpose, ratio in ratios.items()}
            for mesh, ratios in communication().items()
        }
    if arguments.only in (None, "restart"):
        result["restart_seconds"] = round(restart_seconds(), 2)
    if arguments.only in (None, "save"):
        result["save_block_seconds"] = round(save_block_seconds(), 3)
    if arguments.only in (None, "processes"):
        rates = weak_scaling()
        result["weak_scaling"] = {processes: round(rate / rates[1] / processes, 3) for processes, rate in rates.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
