"""What launchers must know of each kind of chip: its names in the clouds, chips a host, and compiler flags.

A machine is written as `--compile` writes it: v6e:16x16, v5p:4x4x4, h100:16.
"""

import math
from dataclasses import dataclass

# libtpu flags that overlap collectives with products. Source: MaxText, src/maxtext/configs/tpu/v5p/llama2_7b.sh and
# benchmarks/xla_flags_library.py (CF_FOR_ALL_GATHER, "enabled by default but lets make sure").
OVERLAP = (
    "--xla_tpu_enable_async_collective_fusion=true",
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
    "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
    "--xla_tpu_overlap_compute_collective_tc=true",
    "--xla_enable_async_all_gather=true",
)
# Chips of two cores that the compiler joins. Source: the same script.
MEGACORE = ("--xla_tpu_megacore_fusion_allow_ags=false", "--xla_tpu_enable_ag_backward_pipelining=true")
# Source: xla_flags_library.py, DENSE_VMEM_LIMIT; Levanter's documentation calls it important on v6e.
LARGE_VMEM = ("--xla_tpu_scoped_vmem_limit_kib=98304",)
# Source: google's accelerator-microbenchmarks, the Ironwood image.
IRONWOOD_VMEM = ("--xla_tpu_scoped_vmem_limit_kib=65536",)
# All-reduces between slices run beside the backward pass. Source: xla_flags_library.py, DATA_PARALLEL_OVERLAP.
BETWEEN_SLICES = (
    "--xla_tpu_enable_data_parallel_all_reduce_opt=true",
    "--xla_tpu_data_parallel_opt_different_sized_ops=true",
)
# Source: JAX documentation, "GPU performance tips"; thresholds: MaxText's gpu/a3 scripts, bytes.
HOPPER = (
    "--xla_gpu_enable_latency_hiding_scheduler=true",
    "--xla_gpu_enable_triton_gemm=false",
    "--xla_gpu_all_reduce_combine_threshold_bytes=536870912",
    "--xla_gpu_all_gather_combine_threshold_bytes=134217728",
    "--xla_gpu_reduce_scatter_combine_threshold_bytes=67108864",
)


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of chip.

    accelerator: Cloud TPU's accelerator type without its number. cores: TensorCores a chip, where the type counts
    cores and not chips. runtime: the TPU VM image. gke: node label of the accelerator. host: chips of one host of a
    slice; whole: the largest slice that is one host of that many chips. flags: what its compiler is told.
    """

    flags: tuple[str, ...]
    accelerator: str | None = None
    cores: int = 1
    runtime: str | None = None
    gke: str
    host: int
    whole: int
    kind: str = "tpu"


# Sources: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x,runtimes} and kubernetes-engine/docs/concepts/{tpus,gpus}.
CHIPS = {
    "v4": Chip(
        accelerator="v4", cores=2, runtime="tpu-ubuntu2204-base", gke="tpu-v4-podslice", host=4, whole=4,
        flags=OVERLAP + MEGACORE,
    ),
    "v5e": Chip(
        accelerator="v5litepod", runtime="v2-alpha-tpuv5-lite", gke="tpu-v5-lite-podslice", host=4, whole=8,
        flags=OVERLAP,
    ),
    "v5p": Chip(
        accelerator="v5p", cores=2, runtime="v2-alpha-tpuv5", gke="tpu-v5p-slice", host=4, whole=4,
        flags=OVERLAP + MEGACORE,
    ),
    "v6e": Chip(
        accelerator="v6e", runtime="v2-alpha-tpuv6e", gke="tpu-v6e-slice", host=4, whole=8, flags=OVERLAP + LARGE_VMEM
    ),
    "tpu7x": Chip(gke="tpu7x", host=4, whole=4, flags=OVERLAP + IRONWOOD_VMEM),
    "h100": Chip(gke="nvidia-h100-80gb", host=8, whole=8, kind="cuda", flags=HOPPER),
}  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """`slices` slices of one shape."""

    chip: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def about(self) -> Chip:
        """What is known of its chip."""
        return CHIPS[self.chip]

    @property
    def chips(self) -> int:
        """Chips of one slice."""
        return math.prod(self.shape)

    @property
    def hosts(self) -> int:
        """Hosts of one slice."""
        return 1 if self.chips <= self.about.whole else self.chips // self.about.host

    @property
    def accelerator_type(self) -> str:
        """Cloud TPU's name of one slice: v5litepod-16, v5p-128 (cores)."""
        if self.about.accelerator is None:
            raise ValueError(f"{self.chip} has no Cloud TPU accelerator type: launch it with gke or slurm")
        return f"{self.about.accelerator}-{self.chips * self.about.cores}"

    def environment(self) -> dict[str, str]:
        """Variables that its compiler and runtime read."""
        flags = self.about.flags + (BETWEEN_SLICES if self.slices > 1 else ())
        if self.about.kind == "tpu":
            return {"LIBTPU_INIT_ARGS": " ".join(flags)}
        # Source of the fraction: NVIDIA JAX-Toolbox, the MaxText example for Slurm.
        return {"XLA_FLAGS": " ".join(flags), "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9"}


def parse_machine(text: str, slices: int = 1) -> Machine:
    """The machine that "v6e:16x16" names.

    Raises:
      ValueError: no such chip, or a shape that is none.
    """
    chip, _, shape = text.partition(":")
    sizes = shape.split("x")
    if chip not in CHIPS or not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise ValueError(
            f"--machine {text}: expected CHIP:SHAPE such as v6e:16x16, v5p:4x4x4 or h100:8; chips: {', '.join(CHIPS)}"
        )
    machine = Machine(chip, tuple(map(int, sizes)), slices)
    if slices < 1 or (machine.about.kind != "tpu" and slices > 1):
        raise ValueError(f"--slices {slices}: expected 1 or more, and 1 for {chip}, which has no slices")
    if machine.chips > machine.about.whole and machine.chips % machine.about.host:
        raise ValueError(f"--machine {text}: {machine.chips} chips are not whole hosts of {machine.about.host} chips")
    return machine
