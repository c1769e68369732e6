"""The real train step, compiled for machines that are not here: what the compiler says of memory and communication.

    python -m train.main --config configs/pretrain_8b.py --dry-run --compile v6e:16x16
    python -m train.main --config configs/pretrain_8b.py --dry-run --compile h100:8

The TPU compiler is in libtpu and the CUDA compiler in jax's CUDA plugin; both come from PyPI and need no accelerator
(launch/requirements-tpu.txt, launch/requirements-cuda.txt, an environment each). What runs only on the machine itself
(autotuning, cuDNN's own plans, time) is not shown by it.
"""

import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from models.attention import choose_kernel
from models.sharding import make_mesh
from train.chips import GIB, Topology
from train.collectives import Collective, collectives, custom_calls
from train.config import Config
from train.cost import Work, attention_shape
from train.cost import seconds as least_seconds
from train.cost import work as step_work
from train.fit import largest_rows
from train.metrics import flop_per_token
from train.parameters import base_size
from train.plan import describe_run

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


def topology_devices(topology: Topology) -> list[Any]:
    """Devices of a machine that is not here, for shardings and compilation.

    Raises:
      ValueError: the compiler for it is not installed, or does not know the shape.
    """
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu asks a metadata server that only a TPU machine has
    try:
        if topology.chip == "h100":
            hosts, chips = -(-topology.chips // 8), min(topology.chips, 8)
            name = f"1x{hosts}x{chips}"  # partitions x hosts x chips of a host
            found = topologies.get_topology_desc(platform="cuda", target_config=H100, topology=name)
        else:
            options: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
            if topology.chip == "v4":  # as TPU VMs run it: both cores as one device
                options["chip_config_name"] = "megacore"
            name = f"{topology.chip}:{'x'.join(map(str, topology.shape))}"
            found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except Exception as error:
        kind = "cuda" if topology.chip == "h100" else "tpu"
        said = (str(error).splitlines() or ["it does not know this shape"])[0][:200]
        raise ValueError(
            f"--compile {topology.name}: the {kind} compiler did not answer ({said}); it needs "
            f"an environment with launch/requirements-{kind}.txt installed"
        ) from error
    return list(found.devices)


def fitted(config: Config, topology: Topology) -> Config:
    """The config with its mesh resized along `fsdp` (`data` over slices) to the devices of the topology, and as many
    rows a device as before."""
    devices = topology.devices
    data, fsdp, context, tensor = (
        config.mesh.shape(devices) if -1 in dataclasses.astuple(config.mesh) else dataclasses.astuple(config.mesh)
    )
    if data * fsdp * context * tensor == devices and data % topology.slices == 0:
        return config
    if devices % (context * tensor * topology.slices):
        raise ValueError(
            f"--compile {topology.name}: mesh context * tensor = {context * tensor} does not divide {devices} devices"
        )
    rows = max(config.loader.global_batch_size // (data * fsdp), config.train.grad_accum_steps)
    within = devices // (context * tensor * topology.slices)
    mesh = dataclasses.replace(config.mesh, data=topology.slices, fsdp=within)
    batch = rows * topology.slices * within
    print(
        f"{topology.name} has {devices} devices and the config's mesh {data * fsdp * context * tensor}: planned with "
        f"data={mesh.data}, fsdp={mesh.fsdp} and a batch of {batch} rows, as many a device as in the config"
    )
    return dataclasses.replace(config, mesh=mesh, loader=dataclasses.replace(config.loader, global_batch_size=batch))


def compile_step(config: Config, mesh: Mesh) -> tuple[Any, float]:
    """The compiled step of `train/loop.py` on that mesh, and the seconds that it took."""
    run = describe_run(config, mesh)
    with jax.set_mesh(mesh):
        begin = time.perf_counter()
        compiled = run.train_step.lower(run.state, run.batch).compile()  # type: ignore[attr-defined]
    return compiled, time.perf_counter() - begin


def compile_report(config: Config, topology: Topology) -> str:
    """Compiles the step for the topology and says what its compiler found.

    Raises:
      ValueError: the compiler is not installed, or the step does not fit the chip.
    """
    mesh = make_mesh(config.mesh, topology_devices(topology))
    try:
        compiled, seconds = compile_step(config, mesh)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError(
            f"--compile {topology.name}: the step does not fit a device of {topology.memory / GIB:.0f} GiB: "
            f"{' '.join(str(error).split())[:400]}; use a smaller batch, more train.grad_accum_steps, or --auto-fit"
        ) from error
    with jax.set_mesh(mesh):
        shape = attention_shape(config, config.model.pattern[0])
        kernel = choose_kernel(shape, config.model.execution.kernel)
    text, state = compiled.as_text(), describe_run(config, mesh).state
    found = collectives(text, topology.domain)
    total = total_bytes(compiled.memory_analysis())
    sizes = dict(mesh.shape)
    rows = config.loader.global_batch_size // config.train.grad_accum_steps // (sizes["data"] * sizes["fsdp"])
    lines = [
        "",
        f"compiled for {mesh.size} x {mesh.devices.flat[0].device_kind} in {seconds:.1f} s",
        f"attention    {kernel.name}: {kernel.reason}",
        *memory_lines(compiled.memory_analysis(), topology),
        f"largest micro-batch that fits: {largest_rows(config, state, topology, total)} rows a device, now {rows}",
        *collective_lines(found, topology),
        "custom calls " + (", ".join(custom_calls(text)) or "none"),
        *time_lines(config, state, topology, step_work(config, state, sizes, found)),
    ]
    return "\n".join(lines)


def total_bytes(memory: Any) -> int:
    """Bytes that the compiler gives one device."""
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return total - memory.alias_size_in_bytes


def memory_lines(memory: Any, topology: Topology) -> list[str]:
    """The compiler's memory of one device."""
    total = total_bytes(memory)
    kinds = {
        "arguments (state, batch)": memory.argument_size_in_bytes,
        "outputs not in place": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "sum": total,
        "the device has": topology.memory,
    }
    lines = ["memory of a device, by its compiler"]
    lines += [f"  {kind:<30} {size / GIB:10.3f} GiB" for kind, size in kinds.items()]
    return lines if total <= topology.memory else [*lines, "  IT DOES NOT FIT"]


def collective_lines(found: Sequence[Collective], topology: Topology) -> list[str]:
    """A line for each kind of collective and link: how often, and the bytes that a device sends."""
    sums: dict[tuple[str, str, int], tuple[int, float]] = {}
    for one in found:
        link = "network" if one.network else topology.about.link
        times, sent = sums.get((one.kind, link, one.group), (0, 0.0))
        sums[one.kind, link, one.group] = (times + one.times, sent + one.sent)
    lines = ["collectives of a step, and what a device sends in them (loops counted as often as they run)"]
    lines += [
        f"  {kind:<20} {times:>6,} x  {sent / GIB:10.3f} GiB over {link}, groups of {group}"
        for (kind, link, group), (times, sent) in sorted(sums.items())
    ]
    return lines if found else [*lines, "  none"]


def time_lines(config: Config, state: Any, topology: Topology, done: Work) -> list[str]:
    """What a step takes at the chip's published peaks, by each resource."""
    times = least_seconds(done, topology)
    flop = flop_per_token(config.model, base_size(state), config.loader.seq_len)
    tokens = config.loader.global_batch_size * config.loader.seq_len
    ideal = flop.palm * tokens / topology.chips / topology.about.flop_per_s
    most, whole = max(times.values()), sum(times.values())
    return [
        "least time of a step by each resource, at published peaks",
        *(f"  {name:<30} {time * 1e3:10.1f} ms" for name, time in times.items()),
        f"  a step: {most * 1e3:.1f} ms if all overlap, {whole * 1e3:.1f} ms if nothing does "
        f"(MFU {ideal / most:.0%} to {ideal / whole:.0%}, {tokens / most / topology.chips:,.0f} to "
        f"{tokens / whole / topology.chips:,.0f} tokens/s a chip)",
    ]
