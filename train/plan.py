"""What a run will be, before anything is made: parameters, shardings, memory of a device by kind, FLOP.

    python -m train.main --config configs/pretrain_8b.py --dry-run mesh.fsdp=64

Shapes come from `jax.eval_shape` on a mesh of devices that need not exist: no array is made.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from models.attention import AttentionShape, KernelChoice, choose_kernel
from models.config import Block, Gated, ModelConfig
from models.sharding import abstract_mesh, batch_sharding, check_mesh
from train.config import Config
from train.loss import next_token_objective
from train.metrics import flop_per_token
from train.optimizer import make_optimizer, make_schedule
from train.state import TrainState, abstract_state, describe_model, make_params, new_state, shardings_of
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
      ValueError: the mesh does not divide the model or the batch.
    """
    options, loader = config.train, config.loader
    check_mesh(config.model, mesh, loader.global_batch_size // options.grad_accum_steps)
    graphdef, axes, placements = describe_model(config.model, mesh)
    tx = make_optimizer(config.optimizer, axes)
    schedule = make_schedule(config.schedule, options.num_steps)

    def create() -> TrainState:
        return new_state(make_params(config.model, options.seed), tx, with_ema=options.ema_decay is not None)

    state = abstract_state(create, placements, mesh)
    rows = batch_sharding(mesh)
    objective = partial(next_token_objective, z_loss=options.z_loss, vocab_chunk=options.vocab_chunk)
    train_step = make_train_step(
        objective, graphdef, tx, schedule, options, shardings=shardings_of(state), batch_sharding=rows
    )
    shape = (loader.global_batch_size, loader.seq_len)
    dtypes = dict.fromkeys(("inputs", "targets", "segment_ids", "positions"), jnp.int32) | {"loss_weights": jnp.float32}
    batch = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for name, dtype in dtypes.items()}
    return AbstractRun(train_step=train_step, state=state, batch=batch)


def dry_run(config: Config, topology: str | None = None) -> None:
    """Prints the plan of a run on the mesh of its config; with a topology, also what its compiler says.

    topology: "v6e:16x16", "h100:8"; the mesh and the batch are then fitted to its number of chips.
    """
    if topology is not None or -1 not in dataclasses.astuple(config.mesh):
        jax.config.update("jax_platforms", "cpu")  # the accelerators here may be at work, and are not needed
    if topology is not None:
        from train.compile import compile_report, fitted, number_of_chips

        config = fitted(config, number_of_chips(topology), topology)
    mesh = abstract_mesh(config.mesh, number_of_devices(config))
    print(plan(config, mesh), flush=True)
    if topology is not None:
        print(compile_report(config, topology), flush=True)


def number_of_devices(config: Config) -> int:
    """Devices of the config's mesh; where one axis is -1, those of this machine."""
    sizes = dataclasses.astuple(config.mesh)
    return len(jax.devices()) if -1 in sizes else int(np.prod(sizes))


def plan(config: Config, mesh: Mesh | AbstractMesh) -> str:
    """The whole plan as text."""
    run = describe_run(config, mesh)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(run.state.params))
    flop = flop_per_token(config.model, num_params, config.loader.seq_len)
    tokens = config.loader.global_batch_size * config.loader.seq_len
    accumulated = config.train.grad_accum_steps
    lines = [
        f"{config.name}: {num_params:,} parameters",
        "mesh         " + " x ".join(f"{name}={size}" for name, size in mesh.shape.items()) + f" ({mesh.size} devices)",
        f"batch        {config.loader.global_batch_size} rows of {config.loader.seq_len} tokens, {tokens:,} a step, "
        f"{config.loader.global_batch_size // accumulated // rows_split(mesh)} rows a device"
        + (f" in each of {accumulated} micro-batches" if accumulated > 1 else ""),
        f"precision    {config.model.dtype} products, {config.model.param_dtype} parameters",
        f"layers       {config.model.num_layers}, remat {config.model.execution.remat!r}",
        *kernel_lines(config),
        "",
        *parameter_table(run.state.params),
        "",
        "memory of a device (estimated; activations depend on the compiler, --compile asks it)",
    ]
    memory = memory_by_kind(config, run.state, mesh)
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


def attention_shape(config: Config, block: Block) -> AttentionShape:
    """What the choice of a kernel for one kind of layer depends on."""
    model = config.model
    return AttentionShape(
        queries=config.loader.seq_len,
        keys=config.loader.seq_len,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        dtype=model.dtype,
        window=block.window,
        softcap=model.attention.softcap,
    )


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


def memory_by_kind(config: Config, state: TrainState, mesh: Mesh | AbstractMesh) -> dict[str, int]:
    """Bytes of one device during a step, by kind. Exact for the state; an estimate for what is made on the way."""
    model, tensor = config.model, mesh.shape["tensor"]
    rows = config.loader.global_batch_size // config.train.grad_accum_steps // rows_split(mesh)
    tokens = rows * config.loader.seq_len
    words = min(config.train.vocab_chunk or model.vocab_size, model.vocab_size)
    item = jnp.dtype(model.dtype).itemsize
    size = lambda tree: sum(map(bytes_here, jax.tree.leaves(tree)))  # noqa: E731
    saved, working = activation_elements(model)
    output = model.vocab_size * model.embed_dim // tensor
    kinds = {
        "parameters": size(state.params),
        "gradients": size(state.params),
        "optimizer": size(state.opt_state),
        "EMA": size(state.ema),
        "activations saved": tokens * saved * item,
        "activations of one layer": tokens * working * item // tensor,
        "attention scores": attention_scores(config, rows) // tensor,
        "logits": tokens * words * 4 // tensor,
        "output matrix, gathered": output * (item + 4) if mesh.shape["fsdp"] > 1 else 0,  # and its float32 gradient
    }
    return {kind: number for kind, number in kinds.items() if number}


def activation_elements(model: ModelConfig) -> tuple[int, int]:
    """Elements a token that the forward pass keeps in all layers, and that one layer holds in its backward pass.

    Without rematerialisation the layer keeps the inputs of its products: both norms' outputs, q, k, v and the heads'
    output, gate, up and their product, and the two residual sums.
    """
    heads = (2 * model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    hidden = (3 if isinstance(model.mlp, Gated) else 2) * model.mlp_dim
    whole = 4 * model.embed_dim + heads + hidden
    if model.execution.remat == "full":
        return model.num_layers * model.embed_dim, 2 * whole
    if model.execution.remat == "dots":
        products = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim + hidden - model.mlp_dim
        return model.num_layers * (3 * model.embed_dim + products), 2 * whole
    return model.num_layers * whole, whole


def attention_scores(config: Config, rows: int) -> int:
    """Bytes of scores that the plain formula keeps; 0 for a kernel that keeps none."""
    model = config.model
    choice = choose_kernel(attention_shape(config, model.pattern[0]), "auto", PLATFORMS[-1])
    if model.dtype != "float32" or choice.name != "dense":
        return 0
    layers = model.num_layers if model.execution.remat == "none" else 1
    return layers * rows * model.num_heads * config.loader.seq_len**2 * 4
