"""Where parameters and activations live on the mesh: one table from logical axis names to mesh axes.

Every parameter names its dims (`nnx.Param(value, axes=("embed", "mlp"))`); stacked layers put "layers" in front. The
mesh has the axes `data` (copies of the parameters, the batch split), `fsdp` (parameters and the batch split), `context`
(each row split along its sequence; attention gathers keys and values) and `tensor` (heads, MLP and vocabulary split).
Meshes are of `AxisType.Auto`: the compiler places what is not constrained here. Over several TPU slices `data` counts
the slices first, so that what crosses the slow network is one reduction of gradients. On a TPU's torus `fsdp` is laid
out as `rings`: reductions into parts go along one ring after the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "context", "tensor")
MeshAxes = str | tuple[str, ...] | None

# The one table. A dim whose name is not here is refused; None means that every device holds the whole dim.
RULES: Mapping[str, MeshAxes] = {
    "batch": ("data", "fsdp"),
    "sequence": "context",
    "layers": None,
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",  # num_heads * head_dim, split between heads
    "kv_heads": "tensor",  # num_kv_heads * head_dim, split between heads
    "mlp": "tensor",
    "norm": None,
    "positions": None,
    "adapters": None,
    "rank": None,
}

FLAT = ("TPU v5 lite", "TPU v6 lite")  # chips that are joined to a torus of two dims; the other TPUs' have three


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis; one of them may be -1: all devices that the others leave."""

    data: int = 1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = astuple(self)
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise ValueError(
                f"mesh {described(sizes)}: each axis must be 1 or more, and at most one may be -1 (the devices that "
                "are left)"
            )

    def shape(self, num_devices: int) -> tuple[int, int, int, int]:
        """Sizes of (data, fsdp, context, tensor) with -1 resolved on `num_devices` devices."""
        sizes = list(astuple(self))
        if -1 in sizes:
            rest = -int(np.prod(sizes))
            if num_devices % rest:
                raise ValueError(
                    f"mesh {described(sizes)} cannot be filled: {num_devices} devices are not a multiple of {rest}"
                )
            sizes[sizes.index(-1)] = num_devices // rest
        return sizes[0], sizes[1], sizes[2], sizes[3]


def described(sizes: Sequence[int]) -> str:
    """`data=2 fsdp=8 tensor=1` for messages; a `context` of 1 is not mentioned."""
    return " ".join(f"{name}={size}" for name, size in zip(MESH_AXES, sizes) if name != "context" or size != 1)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (all by default). One process may use the first few of its devices; several use all."""
    devices = list(jax.devices() if devices is None else devices)
    shape = config.shape(len(devices))
    needed = int(np.prod(shape))
    if needed > len(devices) or (needed < len(devices) and jax.process_count() > 1):
        raise ValueError(
            f"mesh {described(shape)} needs {needed} devices, {len(devices)} {devices[0].platform} devices are here: "
            "set mesh.data, mesh.fsdp or mesh.tensor"
        )
    devices, kinds = devices[:needed], (AxisType.Auto,) * len(shape)
    if devices[0].platform != "tpu":
        return jax.make_mesh(shape, MESH_AXES, axis_types=kinds, devices=devices)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if shape[0] % slices:
        raise ValueError(
            f"mesh {described(shape)} on {slices} slices: mesh.data must be a multiple of {slices}, because only the "
            "data axis may cross the network between slices"
        )
    within = (shape[0] // slices, *rings(shape[1], devices[0].device_kind), *shape[2:])
    if slices == 1:
        placed = create_device_mesh(within, devices, allow_split_physical_axes=True)
    else:
        across = (slices, *(1,) * (len(within) - 1))
        placed = create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
    return Mesh(placed.reshape(shape), MESH_AXES, axis_types=kinds)


def rings(devices: int, kind: str) -> tuple[int, ...]:
    """Sizes of the rings of a torus that so many devices of this kind are laid along, the slowest counted first.

    A reduction over a whole torus TPU compilers write as an all-reduce, which sends twice the bytes of a reduction into
    parts; over a ring, they write the latter. Devices that are not TPUs: one ring.
    """
    sizes, rest = [], devices
    for dims in range({True: 2 if kind in FLAT else 3, False: 1}[kind.startswith("TPU")], 0, -1):
        sizes.append(next(size for size in range(1, rest + 1) if rest % size == 0 and size**dims >= rest))
        rest //= sizes[-1]
    return tuple(size for size in sizes if size > 1) or (1,)


def abstract_mesh(config: MeshConfig, num_devices: int) -> AbstractMesh:
    """A mesh of `num_devices` devices that do not exist, for shapes and shardings alone."""
    shape = config.shape(num_devices)
    if int(np.prod(shape)) != num_devices:
        raise ValueError(f"mesh {described(shape)} is {int(np.prod(shape))} devices, expected {num_devices}")
    return AbstractMesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(shape))


def partition_spec(
    axes: Sequence[str | None], rules: Mapping[str, MeshAxes] = RULES, *, where: str = ""
) -> PartitionSpec:
    """Logical axis names to a PartitionSpec; an unknown name, or one mesh axis on two dims, is refused.

    Args:
      axes: one name (or None) for each dim of the array.
      rules: the table from names to mesh axes.
      where: name of the array, for the error.
    """
    entries: list[MeshAxes] = []
    taken: dict[str, str] = {}
    for name in axes:
        if name is not None and name not in rules:
            raise ValueError(f"{where or 'array'}: no sharding rule for axis {name!r}; known: {', '.join(rules)}")
        entry = None if name is None else rules[name]
        for mesh_axis in (entry,) if isinstance(entry, str) else entry or ():
            if mesh_axis in taken:
                raise ValueError(
                    f"{where or 'array'} with axes {tuple(axes)}: the rules put mesh axis {mesh_axis!r} on both "
                    f"{taken[mesh_axis]!r} and {name!r}; a mesh axis splits one dim of an array"
                )
            taken[mesh_axis] = str(name)
        entries.append(entry)
    return PartitionSpec(*entries)


def mesh_size(mesh: Mesh | AbstractMesh, entry: MeshAxes) -> int:
    """Number of pieces into which an entry of a PartitionSpec cuts a dim."""
    names = (entry,) if isinstance(entry, str) else entry or ()
    return int(np.prod([mesh.shape[name] for name in names], dtype=np.int64))


def logical_axes(variable: nnx.Variable) -> tuple[str | None, ...]:
    """Axis names of a variable, with "layers" in front when it is stacked over layers; none named: all replicated."""
    axes = variable.get_metadata().get("axes")
    rank = len(variable.get_value().shape)
    if axes is None:
        return (None,) * rank
    return ("layers",) * (rank - len(axes)) + tuple(axes)


def param_shardings(params: Any, mesh: Mesh | AbstractMesh, rules: Mapping[str, MeshAxes] = RULES) -> Any:
    """The same tree with a NamedSharding in the place of every array.

    Takes any tree that holds nnx variables: parameters, and optimizer moments made from them by `jax.tree.map`.
    Leaves that are not variables (step counts) are replicated.

    Raises:
      ValueError: the mesh does not divide a dim, or the rules collide.
    """

    def place(path: tuple, leaf: Any) -> Any:
        if not isinstance(leaf, nnx.Variable):
            return NamedSharding(mesh, PartitionSpec())
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        shape = leaf.get_value().shape
        spec = partition_spec(logical_axes(leaf), rules, where=name)
        if leaf.get_metadata().get("optional"):  # small beside the array that it belongs to: whole where it must be
            spec = PartitionSpec(*[e if n % mesh_size(mesh, e) == 0 else None for n, e in zip(shape, spec)])
        for dim, size, entry in zip(range(len(shape)), shape, spec):
            if size % mesh_size(mesh, entry):
                raise ValueError(
                    f"mesh axis {entry}={mesh_size(mesh, entry)} does not divide dim {dim} of {name}, "
                    f"which has shape {tuple(shape)} and axes {logical_axes(leaf)}"
                )
        return leaf.replace(NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(place, params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def batch_sharding(mesh: Mesh | AbstractMesh, rules: Mapping[str, MeshAxes] = RULES) -> NamedSharding:
    """Sharding of a [B, T] batch: rows over the data axes, the sequence over `context`."""
    return NamedSharding(mesh, partition_spec(("batch", "sequence"), rules))


@runtime_checkable
class Sizes(Protocol):
    """What of a model's config the axes of a mesh divide, by the names of `models.config.ModelConfig`."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def embed_dim(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def mlp_dim(self) -> int: ...


def check_mesh(
    config: Sizes, mesh: Mesh | AbstractMesh, batch_size: int | None = None, seq_len: int | None = None
) -> None:
    """Refuses, in one line, a mesh that does not divide the heads, the MLP, the vocabulary, the batch or the sequence.

    Args:
      batch_size: rows of one forward pass over the whole mesh (the global batch divided by accumulation steps).
    """
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    for name in ("num_heads", "num_kv_heads", "mlp_dim", "vocab_size"):
        if getattr(config, name) % tensor:
            raise ValueError(
                f"mesh.tensor={tensor} does not divide model.{name}={getattr(config, name)}: "
                f"choose a tensor size that does, or fsdp instead"
            )
    if config.embed_dim % fsdp:
        raise ValueError(f"mesh.fsdp={fsdp} does not divide model.embed_dim={config.embed_dim}")
    if seq_len is not None and seq_len % mesh.shape["context"]:
        raise ValueError(f"mesh.context={mesh.shape['context']} does not divide loader.seq_len={seq_len}")
    rows = mesh_size(mesh, RULES["batch"])
    if batch_size is not None and batch_size % rows:
        raise ValueError(
            f"mesh data*fsdp={rows} does not divide the batch of {batch_size} rows: "
            f"make it a multiple of {rows}, or the mesh smaller"
        )


def constrain_evenly(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """`constrain`, but for the dims that the mesh does not divide: those stay whole."""
    mesh = jax.sharding.get_abstract_mesh()
    if any(name not in mesh.axis_names for name in MESH_AXES):
        return x
    sizes = [1 if name is None else mesh_size(mesh, RULES[name]) for name in axes]
    return constrain(x, [None if dim % size else name for dim, size, name in zip(x.shape, sizes, axes)])


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Fixes the sharding of an activation or a gathered weight on the mesh set by `jax.set_mesh`; no mesh: as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or any(name not in mesh.axis_names for name in MESH_AXES):
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes))
