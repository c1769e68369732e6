"""What a step must do, from shapes alone: FLOP, bytes of memory traffic, bytes over every kind of link, and the time.

Shapes in the comments: T tokens, D embed, V vocabulary, L layers; n devices of a mesh axis.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from models.attention import AttentionShape
from models.config import Block
from train.chips import Topology
from train.collectives import Collective
from train.config import Config
from train.parameters import logical_size, named_leaves
from train.state import whole_params

FLASH_BACKWARD = 2.5  # attention's backward products over its forward ones (Dao 2023, arXiv:2307.08691, section 4.1)


@dataclass(frozen=True)
class Work:
    """One step on one device. links: bytes sent over fast links, by devices of a group; network: over the slow one."""

    flop: float
    memory_bytes: float
    links: Mapping[int, float]
    network: float


def local_bytes(tree: Any, sizes: Mapping[str, int]) -> int:
    """Bytes of one device's part of all arrays, on a mesh of these sizes; shardings name the axes."""
    return sum(
        leaf.size * leaf.dtype.itemsize // math.prod(sizes[axis] for axis in axes_of(leaf)) for leaf in leaves(tree)
    )


def leaves(tree: Any) -> list[jax.ShapeDtypeStruct]:
    """The abstract arrays of a tree."""
    return jax.tree.leaves(tree)


def axes_of(leaf: jax.ShapeDtypeStruct) -> list[str]:
    """Mesh axes over which an abstract array is split."""
    spec: Iterable[Any] = leaf.sharding.spec if leaf.sharding is not None else ()
    return [axis for entry in spec for axis in ((entry,) if isinstance(entry, str) else entry or ())]


def micro_tokens(config: Config, sizes: Mapping[str, int]) -> int:
    """Tokens of one micro-batch on one device."""
    rows = config.loader.global_batch_size // config.train.grad_accum_steps // (sizes["data"] * sizes["fsdp"])
    return rows * config.loader.seq_len // sizes["context"]


def remat_passes(config: Config) -> int:
    """Forward passes of a layer in one step."""
    return 2 if config.model.execution.remat == "full" else 1


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
        context=max(config.mesh.context, 1),
    )


def step_flop(config: Config, state: Any, sizes: Mapping[str, int]) -> float:
    """FLOP of one device's products in a step, with what rematerialisation and vocabulary chunks repeat."""
    model, devices = config.model, math.prod(sizes.values())
    tokens = config.loader.global_batch_size * config.loader.seq_len
    table = model.vocab_size * model.embed_dim
    whole = named_leaves(whole_params(state.params, state.frozen))
    matrices = [logical_size(path, leaf) for path, leaf in whole if leaf.ndim > 2]  # stacked: [L, I, O]
    trained = [leaf.size for leaf in leaves(state.params) if leaf.ndim > 2]
    chunked = config.train.vocab_chunk is not None and config.train.vocab_chunk < model.vocab_size
    layers = 2 * tokens * (sum(matrices) * (remat_passes(config) + 1) + sum(trained))
    head = 2 * tokens * table * (4 if chunked else 3)
    scores = 2 * model.num_layers * tokens * config.loader.seq_len * model.num_heads * model.head_dim  # half a square
    repeated = 0 if config.model.execution.remat == "none" else 1
    return (layers + head + scores * (1 + repeated + FLASH_BACKWARD)) / devices


def model_params(state: Any) -> Any:
    """All parameters of the model: those that are trained, and those that are frozen where there are any."""
    return (state.params, getattr(state, "frozen", None))


def memory_traffic(config: Config, state: Any, sizes: Mapping[str, int]) -> float:
    """Bytes that one device reads and writes in a step: optimizer, weights of every pass, activations, logits."""
    model, micro = config.model, config.train.grad_accum_steps
    item, tokens = jnp.dtype(model.dtype).itemsize, micro_tokens(config, sizes)
    update = 2 * (local_bytes((state.params, state.opt_state, state.ema), sizes) + local_bytes(state.params, sizes))
    weights = sum(leaf.size for leaf in leaves(model_params(state))) * item / sizes["tensor"]
    heads = (2 * model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    layer = tokens * (4 * model.embed_dim + (heads + 3 * model.mlp_dim) / sizes["tensor"]) * item
    logits = tokens * model.vocab_size / sizes["tensor"] * 4
    passes = remat_passes(config) + 2  # the backward pass reads for both of its products
    return update + micro * (2 * passes * weights + 2 * passes * layer * model.num_layers + 6 * logits)


def ideal_traffic(config: Config, state: Any, sizes: Mapping[str, int], domain: int) -> list[Collective]:
    """The collectives that a step needs on this mesh and no others.

    fsdp: every split parameter gathered for the forward pass and, in a layer, again for the backward pass (where
    nothing is rematerialised the first copy is kept), its gradient reduced. data: gradients reduced once more. tensor:
    two reductions of the activations a layer forward and two backward, and what rematerialisation repeats; one for the
    embedding, one for the output. context: keys and values gathered in each pass, their gradients reduced.
    """
    model, micro = config.model, config.train.grad_accum_steps
    item, tokens = jnp.dtype(model.dtype).itemsize, micro_tokens(config, sizes)
    data, fsdp, context, tensor = (sizes[name] for name in ("data", "fsdp", "context", "tensor"))
    found: list[Collective] = []

    strides = {"tensor": 1, "context": tensor, "fsdp": tensor * context, "data": tensor * context * fsdp}

    def need(kind: str, times: int, size: int | float, axis: str, network: bool = False) -> None:
        if sizes[axis] > 1 and times:
            found.append(Collective(kind, times, int(size), sizes[axis], network, strides[axis]))

    passes = 1 if model.execution.remat == "none" else 2
    for leaf in leaves(model_params(state)):
        if "fsdp" in axes_of(leaf):
            kept = min(item, leaf.dtype.itemsize)  # what is stored in less is gathered as it is stored
            whole = leaf.size * kept / (tensor if "tensor" in axes_of(leaf) else 1)
            need("all-gather", micro * (passes if leaf.ndim > 2 else 1), whole, "fsdp")
    for leaf in leaves(state.params):
        split = axes_of(leaf)
        local = leaf.size * item / (tensor if "tensor" in split else 1)
        if "fsdp" in split:
            need("reduce-scatter", micro, local / fsdp, "fsdp")
            local /= fsdp
        need("all-reduce", micro, local, "data", network=data * fsdp * context * tensor > domain)
    activations = tokens * model.embed_dim * item
    repeated = 1 if model.execution.remat == "full" else 0
    need("all-reduce", micro * (model.num_layers * (4 + repeated) + 2), activations, "tensor")
    keys = tokens * context * model.num_kv_heads * model.head_dim * item / tensor
    need("all-gather", micro * model.num_layers * 2 * passes, keys, "context")
    need("reduce-scatter", micro * model.num_layers * 2, keys / context, "context")
    return found


def work(config: Config, state: Any, sizes: Mapping[str, int], found: Iterable[Collective]) -> Work:
    """The work of a step with these collectives: those of a compiled program, or the ideal ones."""
    links: dict[int, float] = {}
    network = 0.0
    for one in found:
        if one.network:
            network += one.sent
        else:
            links[one.group] = links.get(one.group, 0.0) + one.sent
    return Work(step_flop(config, state, sizes), memory_traffic(config, state, sizes), links, network)


def seconds(done: Work, topology: Topology) -> dict[str, float]:
    """The least time of each resource at the chip's published peak. A step takes no less than the largest, and about
    the sum where nothing overlaps."""
    chip, cores = topology.about, topology.about.devices
    within = topology.domain
    links = sum(
        size / (chip.link_bytes_per_s / cores * (1.0 if group >= within else chip.axis_links))
        for group, size in done.links.items()
    )
    times = {
        "products": done.flop / (chip.flop_per_s / cores),
        "memory": done.memory_bytes / (chip.memory_bytes_per_s / cores),
        chip.link: links,
        "network": done.network / (chip.network_bytes_per_s / cores),
    }
    return {name: time for name, time in times.items() if time}
