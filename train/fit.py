"""Which mesh, micro-batch and rematerialisation a machine runs a config best with, from shapes alone.

    python -m train.main --config configs/pretrain_8b.py --dry-run --auto-fit v6e:8x8

The global batch stays as the config has it: what is chosen changes the speed of a run and not its curve.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal

from models.encoder import EncoderConfig
from models.sharding import MESH_AXES, MeshConfig
from train.chips import GIB, Topology
from train.config import Config
from train.cost import ideal_traffic, seconds, work
from train.memory import memory_by_kind

USABLE = 0.92  # of a device's memory: the runtime keeps some
REMATS: tuple[Literal["none", "dots", "full"], ...] = ("none", "dots", "full")
MOST_CONTEXT = 16  # devices that one row is split over


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """A way to run a config: its seconds a step (between all and nothing overlapping) and bytes of a device."""

    config: Config
    seconds: float
    memory: int

    @property
    def overrides(self) -> list[str]:
        """What to add to the command line."""
        mesh = self.config.mesh
        axes = [f"mesh.{name}={getattr(mesh, name)}" for name in MESH_AXES]
        return [
            *axes,
            f"train.grad_accum_steps={self.config.train.grad_accum_steps}",
            f"model.execution.remat={self.config.model.execution.remat}",
        ]


def auto_fit(config: Config, state: Any, topology: Topology) -> list[Choice]:
    """Every way to run the config on the machine that fits its memory, the fastest first.

    state: the abstract state of the config on any mesh, for its shapes.

    Raises:
      ValueError: none fits, or the model is an encoder.
    """
    fits, least = [], math.inf
    for context in divisors(math.gcd(MOST_CONTEXT, config.loader.seq_len)):
        for candidate in candidates(config, topology, context):
            sizes = dict(zip(MESH_AXES, dataclasses.astuple(candidate.mesh)))
            memory = sum(memory_by_kind(candidate, state, sizes, topology.platform).values())
            least = min(least, memory)
            if memory <= USABLE * topology.memory:
                traffic = ideal_traffic(candidate, state, sizes, topology.domain)
                times = seconds(work(candidate, state, sizes, traffic), topology).values()
                # Real steps lie between all and nothing overlapping; the middle ranks them.
                fits.append(Choice(config=candidate, seconds=(max(times) + sum(times)) / 2, memory=memory))
        if fits:  # rows are split over more devices only where whole ones do not fit
            break
    if not fits:
        raise ValueError(
            f"--auto-fit {topology.name}: no mesh, micro-batch and rematerialisation of this config fits a device of "
            f"{topology.memory / GIB:.0f} GiB; the smallest needs {least / GIB:.1f} GiB. Take more chips, a smaller "
            "loader.seq_len or optimizer.moment_dtype='bfloat16'"
        )
    return sorted(fits, key=lambda choice: (choice.seconds, choice.memory))


def candidates(config: Config, topology: Topology, context: int) -> Iterator[Config]:
    """The config on every mesh that divides it, with every micro-batch and kind of rematerialisation."""
    model, rows = config.model, config.loader.global_batch_size
    if isinstance(model, EncoderConfig):
        raise ValueError("--auto-fit chooses for causal models: an encoder recomputes nothing, set mesh by hand")
    for tensor in divisors(math.gcd(model.num_kv_heads, math.gcd(model.mlp_dim, model.vocab_size))):
        if topology.domain % (tensor * context):
            continue
        for fsdp in divisors(topology.domain // (tensor * context)):
            data = topology.devices // (tensor * context * fsdp)
            if model.embed_dim % fsdp or rows % (data * fsdp) or data % topology.slices:
                continue
            mesh = MeshConfig(data=data, fsdp=fsdp, context=context, tensor=tensor)
            for micro in divisors(rows // (data * fsdp)):
                options = dataclasses.replace(config.train, grad_accum_steps=rows // (data * fsdp * micro))
                for remat in REMATS:
                    part = dataclasses.replace(model, execution=dataclasses.replace(model.execution, remat=remat))
                    yield dataclasses.replace(config, mesh=mesh, model=part, train=options)


def divisors(number: int) -> list[int]:
    """The divisors of a number, ascending."""
    return [size for size in range(1, number + 1) if number % size == 0]


def largest_rows(config: Config, state: Any, topology: Topology, measured: int | None = None) -> int:
    """The most rows of a micro-batch on one device that fit; 0: not even one does.

    measured: bytes that the compiler gave the config as it is; the estimate then only says what one row more costs.
    """
    sizes = dict(zip(MESH_AXES, dataclasses.astuple(config.mesh)))
    devices = sizes["data"] * sizes["fsdp"]
    here = config.loader.global_batch_size // config.train.grad_accum_steps // devices

    def needed(rows: int) -> int:
        loader = dataclasses.replace(config.loader, global_batch_size=rows * devices)
        one = dataclasses.replace(config.train, grad_accum_steps=1)
        larger = dataclasses.replace(config, loader=loader, train=one)
        return sum(memory_by_kind(larger, state, sizes, topology.platform).values())

    offset = 0 if measured is None else measured - needed(here)
    limit = topology.memory if measured is not None else USABLE * topology.memory
    rows = 0
    while rows < 4096 and needed(rows + 1) + offset <= limit:
        rows += 1
    return rows


def fit_report(choices: list[Choice], topology: Topology) -> str:
    """The best choices as text, and the overrides of the first."""
    best = choices[0]
    lines = [f"{len(choices)} ways fit {topology.name}; the fastest, by published peaks and shapes", ""]
    lines.append("  data  fsdp  context  tensor  rows/device  micro-batches  remat   GiB/device   ms/step")
    for choice in choices[:5]:
        config, mesh = choice.config, choice.config.mesh
        rows = config.loader.global_batch_size // config.train.grad_accum_steps // (mesh.data * mesh.fsdp)
        lines.append(
            f"  {mesh.data:>4}  {mesh.fsdp:>4}  {mesh.context:>7}  {mesh.tensor:>6}  {rows:>11}  "
            f"{config.train.grad_accum_steps:>13}  {config.model.execution.remat:<5}  {choice.memory / GIB:>11.2f}  "
            f"{choice.seconds * 1e3:>8.1f}"
        )
    return "\n".join([*lines, "", "add to the command: " + " ".join(best.overrides)])
