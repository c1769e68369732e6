"""The real train step, compiled for machines that are not here: what the compiler says of memory and communication.

    python -m train.main --config configs/pretrain_8b.py --dry-run --compile v6e:16x16
    python -m train.main --config configs/pretrain_8b.py --dry-run --compile h100:8

The TPU compiler is in libtpu and the CUDA compiler in jax's CUDA plugin; both come from PyPI and need no accelerator
(launch/requirements-tpu.txt, launch/requirements-cuda.txt, an environment each). What runs only on the machine itself
(autotuning, cuDNN's own plans, time) is not shown by it.
"""

import dataclasses
import math
import os
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from models.sharding import make_mesh
from train.collectives import collectives, custom_calls
from train.config import Config
from train.plan import attention_shape, describe_run

GIB = 1 << 30
# Memory of a chip, GiB. Sources: cloud.google.com/tpu/docs (one page a version); NVIDIA's H100 SXM data sheet.
CHIP_MEMORY = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32, "tpu7x": 192, "h100": 80}

# XLA's description of an H100 SXM as a compile target, as jax on such a machine prints it.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def parse_topology(topology: str) -> tuple[str, tuple[int, ...]]:
    """("v6e", (16, 16)) of "v6e:16x16"; ("h100", (8,)) of "h100:8"."""
    chip, _, shape = topology.partition(":")
    sizes = shape.split("x")
    if chip not in CHIP_MEMORY or not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise ValueError(
            f"--compile {topology}: expected CHIP:SHAPE such as v6e:16x16, v5p:4x4x4 or h100:8; "
            f"chips: {', '.join(CHIP_MEMORY)}"
        )
    return chip, tuple(int(size) for size in sizes)


def number_of_chips(topology: str) -> int:
    """Chips of "v6e:16x16": 256."""
    return math.prod(parse_topology(topology)[1])


def topology_devices(topology: str) -> list[Any]:
    """Devices of a machine that is not here, for shardings and compilation.

    Raises:
      ValueError: the compiler for it is not installed, or does not know the shape.
    """
    from jax.experimental import topologies

    chip, shape = parse_topology(topology)
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu asks a metadata server that only a TPU machine has
    try:
        if chip == "h100":
            hosts, chips = (1, shape[0]) if shape[0] <= 8 else (shape[0] // 8, 8)
            name = f"1x{hosts}x{chips}"  # partitions x hosts x chips of a host
            found = topologies.get_topology_desc(platform="cuda", target_config=H100, topology=name)
        else:
            found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:
        kind = "cuda" if chip == "h100" else "tpu"
        raise ValueError(
            f"--compile {topology}: the {kind} compiler did not answer ({str(error).splitlines()[0][:200]}); it needs "
            f"an environment with launch/requirements-{kind}.txt installed"
        ) from error
    return list(found.devices)


def fitted(config: Config, chips: int, topology: str) -> Config:
    """The config with its mesh resized along `fsdp` to that many chips, and as many rows a device as before."""
    data, fsdp, tensor = (
        config.mesh.shape(chips) if -1 in dataclasses.astuple(config.mesh) else dataclasses.astuple(config.mesh)
    )
    if data * fsdp * tensor == chips:
        return config
    if chips % tensor:
        raise ValueError(f"--compile {topology}: mesh.tensor={tensor} does not divide {chips} chips")
    rows = max(config.loader.global_batch_size // (data * fsdp), config.train.grad_accum_steps)
    mesh = dataclasses.replace(config.mesh, data=1, fsdp=chips // tensor, tensor=tensor)
    batch = rows * mesh.fsdp
    print(
        f"{topology} has {chips} chips and the config's mesh {data * fsdp * tensor}: compiled with fsdp={mesh.fsdp}, "
        f"tensor={tensor} and a batch of {batch} rows, as many a device as in the config"
    )
    return dataclasses.replace(config, mesh=mesh, loader=dataclasses.replace(config.loader, global_batch_size=batch))


def compile_step(config: Config, mesh: Mesh) -> tuple[Any, float]:
    """The compiled step of `train/loop.py` on that mesh, and the seconds that it took."""
    run = describe_run(config, mesh)
    with jax.set_mesh(mesh):
        begin = time.perf_counter()
        compiled = run.train_step.lower(run.state, run.batch).compile()  # type: ignore[attr-defined]
    return compiled, time.perf_counter() - begin


def compile_report(config: Config, topology: str) -> str:
    """Compiles the step for the topology and says what its compiler found.

    Raises:
      ValueError: the compiler is not installed, or the step does not fit the chip.
    """
    chip, _ = parse_topology(topology)
    mesh = make_mesh(config.mesh, topology_devices(topology))
    try:
        compiled, seconds = compile_step(config, mesh)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError(
            f"--compile {topology}: the step does not fit a chip of {CHIP_MEMORY[chip]} GiB: {str(error)[:400]}; "
            "use a smaller batch or more train.grad_accum_steps"
        ) from error
    from models.attention import choose_kernel

    with jax.set_mesh(mesh):
        shape = attention_shape(config, config.model.pattern[0])
        kernel = choose_kernel(shape, config.model.execution.kernel)
    text = compiled.as_text()
    device = mesh.devices.flat[0].device_kind
    lines = [
        "",
        f"compiled for {mesh.size} x {device} in {seconds:.1f} s",
        f"attention    {kernel.name}: {kernel.reason}",
    ]
    lines += memory_lines(compiled.memory_analysis(), CHIP_MEMORY[chip])
    lines.append(
        "collectives of a step (bytes that leave the operation on one chip, loops counted as often as they run)"
    )
    found = collectives(text)
    lines += [f"  {kind:<30} {count:>6,} x   {size / GIB:10.3f} GiB" for kind, (count, size) in sorted(found.items())]
    lines += [] if found else ["  none"]
    lines.append("custom calls " + (", ".join(custom_calls(text)) or "none"))
    return "\n".join(lines)


def memory_lines(memory: Any, chip_gib: int) -> list[str]:
    """The compiler's memory of one chip."""
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    total -= memory.alias_size_in_bytes
    kinds = {
        "arguments (state, batch)": memory.argument_size_in_bytes,
        "outputs not in place": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "sum": total,
    }
    lines = ["memory of a chip, by its compiler"]
    lines += [f"  {kind:<30} {np.float64(size) / GIB:10.3f} GiB" for kind, size in kinds.items()]
    lines.append(
        f"  {'the chip has':<30} {chip_gib:10.3f} GiB" + ("" if total <= chip_gib * GIB else "  IT DOES NOT FIT")
    )
    return lines
