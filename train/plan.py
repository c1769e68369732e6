"""What a run will be, before anything is made: parameters, shardings, memory of a device by kind, FLOP.

    python -m train.main --config configs/pretrain_8b.py --dry-run mesh.fsdp=64

Shapes come from `jax.eval_shape` on a mesh of devices that need not exist: no array is made.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from models.attention import KernelChoice, choose_kernel
from models.sharding import MeshConfig, abstract_mesh, batch_sharding, check_mesh
from models.tuning import Tuning
from train.chips import parse_topology
from train.config import Config
from train.cost import attention_shape
from train.memory import memory_by_kind
from train.metrics import flop_per_token
from train.optimizer import make_optimizer, make_schedule
from train.parameters import base_size, bits_a_weight, trainable_line
from train.state import (
    TrainState,
    abstract_state,
    describe_model,
    make_params,
    new_state,
    shardings_of,
    whole_params,
)
from train.step import Batch, Metrics, make_train_step

GIB = 1 << 30
PLATFORMS = (
    ("tpu", "TPU v6 lite"),
    ("gpu", "NVIDIA H100 80GB HBM3"),
    ("cpu", "cpu"),
)  # of which the plan tells kernels


@dataclasses.dataclass(frozen=True, kw_only=True)
class AbstractRun:
    """The step of a run with the shapes, dtypes and shardings of all that goes into it."""

    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]


def describe_run(config: Config, mesh: Mesh | AbstractMesh) -> AbstractRun:
    """The same step that `train/loop.py` runs, on a mesh whose devices need not exist.

    Raises:
      ValueError: the mesh does not divide the model, the batch or the sequence.
    """
    options, loader = config.train, config.loader
    check_mesh(config.model, mesh, loader.global_batch_size // options.grad_accum_steps, loader.seq_len)
    graphdef, axes, placements = describe_model(config.model, mesh, config.tuning)
    tx = make_optimizer(config.optimizer, axes)
    schedule = make_schedule(config.schedule, options.num_steps)

    def create() -> TrainState:
        params = make_params(config.model, options.seed, config.tuning)
        return new_state(params, tx, with_ema=options.ema_decay is not None, axes=axes)

    state = abstract_state(create, placements, mesh)
    rows = batch_sharding(mesh)
    objective = config.objective.make(options)
    train_step = make_train_step(
        objective,
        graphdef,
        tx,
        schedule,
        options,
        shardings=shardings_of(state),
        batch_sharding=rows,
        dropout=config.draws,
    )
    shape = (loader.global_batch_size, loader.seq_len)
    dtypes = dict.fromkeys(("inputs", "targets", "segment_ids", "positions"), jnp.int32) | {"loss_weights": jnp.float32}
    if loader.adapters:
        dtypes["adapter_ids"] = jnp.int32
    batch = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for name, dtype in dtypes.items()}
    return AbstractRun(train_step=train_step, state=state, batch=batch)


def dry_run(config: Config, topology: str | None = None, auto_fit: str | None = None) -> None:
    """Prints the plan of a run on the mesh of its config; with a topology, also what its compiler says.

    topology: "v6e:16x16", "2*v6e:16x16", "h100:8"; the mesh and the batch are then fitted to its number of chips.
    auto_fit: the same, but mesh, micro-batch and rematerialisation are chosen for it; it is not compiled.
    """
    if topology or auto_fit or -1 not in dataclasses.astuple(config.mesh):
        jax.config.update("jax_platforms", "cpu")  # the accelerators here may be at work, and are not needed
    if auto_fit is not None:
        from train.fit import auto_fit as fit
        from train.fit import fit_report

        machine = parse_topology(auto_fit)
        one = dataclasses.replace(config, mesh=MeshConfig())  # shapes alone are asked for, and every mesh has the same
        choices = fit(config, describe_run(one, abstract_mesh(one.mesh, 1)).state, machine)
        print(fit_report(choices, machine) + "\n", flush=True)
        config = choices[0].config
    if topology is not None:
        from train.compile import compile_report, fitted

        config = fitted(config, parse_topology(topology))
    mesh = abstract_mesh(config.mesh, number_of_devices(config))
    print(plan(config, mesh), flush=True)
    if topology is not None:
        print(compile_report(config, parse_topology(topology)), flush=True)


def number_of_devices(config: Config) -> int:
    """Devices of the config's mesh; where one axis is -1, those of this machine."""
    sizes = dataclasses.astuple(config.mesh)
    return len(jax.devices()) if -1 in sizes else int(np.prod(sizes))


def plan(config: Config, mesh: Mesh | AbstractMesh) -> str:
    """The whole plan as text."""
    run = describe_run(config, mesh)
    num_params, bits = base_size(run.state), bits_a_weight(run.state)
    flop = flop_per_token(config.model, num_params, config.loader.seq_len)
    tokens = config.loader.global_batch_size * config.loader.seq_len
    accumulated = config.train.grad_accum_steps
    lines = [
        f"{config.name}: {num_params:,} parameters",
        *([] if config.tuning == Tuning() else [trainable_line(run.state)]),
        *([] if bits is None else [f"quantised    projections rest in {bits:.3f} bits a weight, scales included"]),
        "mesh         " + " x ".join(f"{name}={size}" for name, size in mesh.shape.items()) + f" ({mesh.size} devices)",
        f"batch        {config.loader.global_batch_size} rows of {config.loader.seq_len} tokens, {tokens:,} a step, "
        f"{config.loader.global_batch_size // accumulated // rows_split(mesh)} rows a device"
        + (f" in each of {accumulated} micro-batches" if accumulated > 1 else ""),
        f"precision    {config.model.dtype} products, {config.model.param_dtype} parameters",
        f"layers       {config.model.num_layers}, remat {config.model.execution.remat!r}",
        *kernel_lines(config),
        "",
        *parameter_table(whole_params(run.state.params, run.state.frozen)),
        "",
        "memory of a device, an estimate from shapes (--compile asks the compiler)",
    ]
    memory = memory_by_kind(config, run.state, mesh.shape)
    lines += [f"  {kind:<30} {size / GIB:10.3f} GiB" for kind, size in memory.items()]
    lines += [f"  {'sum':<30} {sum(memory.values()) / GIB:10.3f} GiB", ""]
    lines += [
        f"FLOP a token {flop.palm:.4e} = 6 N + 12 L T N_heads H (PaLM), {flop.causal:.4e} counting attention under the "
        "diagonal and no input embedding",
        f"FLOP a step  {flop.palm * tokens:.4e} (PaLM), {flop.palm * tokens / mesh.size:.4e} a device",
    ]
    return "\n".join(lines)


def rows_split(mesh: Mesh | AbstractMesh) -> int:
    """Devices over which the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def kernel_lines(config: Config) -> list[str]:
    """The attention kernel that each kind of device would get, and why."""
    lines = []
    for backend, kind in PLATFORMS:
        try:
            choice = choose_kernel(
                attention_shape(config, config.model.pattern[0]), config.model.execution.kernel, (backend, kind)
            )
        except ValueError as error:
            choice = KernelChoice("refused", str(error))
        lines.append(f"attention    on {kind}: {choice.name} ({choice.reason})")
    return lines


def parameter_table(params: Any) -> list[str]:
    """One line a parameter: name, shape, dtype, sharding, bytes on a device."""
    rows = [("parameter", "shape", "dtype", "sharding", "MiB a device")]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        spec = ", ".join("-" if axis is None else str(axis) for axis in leaf.sharding.spec)
        rows.append((name, "x".join(map(str, leaf.shape)), str(leaf.dtype), spec, f"{bytes_here(leaf) / 2**20:,.2f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def bytes_here(leaf: jax.ShapeDtypeStruct) -> int:
    """Bytes of one device's part of an array."""
    assert leaf.sharding is not None
    return int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize
