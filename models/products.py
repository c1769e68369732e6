"""Products with weights that are split over the mesh: gathered where they are used, their gradients reduced into parts.

Left to themselves compilers reduce a weight's whole gradient on every device (twice the bytes of a reduction into
parts), or cut the product that makes it into as many thin ones as there are devices. Here the reduction is said.

Shapes: B batch, T sequence, I and O the sides of a projection.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from models.attention import ambient_platform
from models.sharding import MESH_AXES, RULES, constrain, constrain_evenly, mesh_size, partition_spec, rings

Names = tuple[str | None, ...]


def gathered(kernel: jax.Array, axes: Names) -> jax.Array:
    """The kernel whole over `fsdp`: named here, so that the compiler gathers weights and never moves activations.

    Its gradient is asked for in parts, which the compiler makes as it finds best.
    """
    if jax.sharding.get_abstract_mesh().size <= 1:
        return kernel

    @jax.custom_vjp
    def gather(kernel: jax.Array) -> jax.Array:
        return constrain(kernel, _whole(axes))

    def backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
        return (constrain_evenly(gradient, axes),)

    gather.defvjp(lambda kernel: (gather(kernel), None), backward)
    return gather(kernel)


def weight_product(x: Float[Array, "*batch I"], kernel: Float[Array, "I O"], axes: Names) -> Float[Array, "*batch O"]:
    """x @ kernel, both in the dtype of the product; `axes` names the kernel's dims.

    The backward pass reduces the kernel's gradient over the batch into the parts that each device keeps. Layers that
    are rematerialised gather the kernel again for it; where nothing is, the gathered one is kept.
    """
    if x.ndim != 3 or not _divided(x, kernel, axes):
        return x @ gathered(kernel, axes)

    @jax.custom_vjp
    def product(x_BTI: jax.Array, kernel_IO: jax.Array) -> jax.Array:
        return x_BTI @ constrain(constrain(kernel_IO, axes), _whole(axes))

    def forward(x_BTI: jax.Array, kernel_IO: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        parts_IO = constrain(kernel_IO, axes)  # in the product's dtype: else compilers may gather the wider parameter
        whole_IO = constrain(parts_IO, _whole(axes))  # kept, so that what is rematerialised gathers it once for both
        return x_BTI @ whole_IO, (x_BTI, whole_IO)

    def backward(saved: tuple[jax.Array, jax.Array], gradient_BTO: jax.Array) -> tuple[jax.Array, jax.Array]:
        x_BTI, whole_IO = saved
        return gradient_BTO @ whole_IO.T, kernel_gradient(x_BTI, gradient_BTO, axes, whole_IO.dtype)

    product.defvjp(forward, backward)
    return product(x, kernel)


def kernel_gradient(
    x_BTI: Float[Array, "B T I"], gradient_BTO: Float[Array, "B T O"], axes: Names, dtype: jnp.dtype
) -> Float[Array, "I O"]:
    """Sum over all tokens of x (outer) gradient, each device with its part of the kernel; products add up in float32
    on a device, sums over devices are in `dtype`."""
    product = partial(jnp.einsum, "bti,bto->io", preferred_element_type=jnp.float32)
    if not _divided(x_BTI, gradient_BTO, axes):
        return product(x_BTI, gradient_BTO).astype(dtype)

    def on_device(x_BTI: jax.Array, gradient_BTO: jax.Array) -> jax.Array:
        part = product(x_BTI, gradient_BTO).astype(dtype)
        if "embed" in axes:
            part = _in_parts(part, axes.index("embed"))
        return _summed(part, ("data", "context") if "embed" in axes else ("data", "fsdp", "context"))

    whole = _whole(axes)
    specs = tuple(partition_spec(("batch", "sequence", name)) for name in whole)
    # check_vma: what is summed over an axis is the same along it, which the check cannot see
    split = jax.shard_map(on_device, in_specs=specs, out_specs=partition_spec(axes), check_vma=False)
    return split(x_BTI, gradient_BTO)


def looked_up(table_VD: Float[Array, "V D"], ids_BT: Int[Array, "B T"], axes: Names) -> Float[Array, "B T D"]:
    """The rows of a table that is gathered over `fsdp`; the backward pass sums theirs into the parts that devices keep.

    Each device adds up its own tokens first: the compiler, left to itself, brings all tokens to all devices.
    """
    if not _divided(ids_BT[:, :, None], table_VD, (None, *axes[1:])) or table_VD.shape[0] % _shards(axes[0]):
        return gathered(table_VD, axes)[ids_BT]

    @jax.custom_vjp
    def lookup(table_VD: jax.Array, ids_BT: jax.Array) -> jax.Array:
        return constrain(table_VD, _whole(axes))[ids_BT]

    def on_device(ids_BT: jax.Array, gradient_BTD: jax.Array) -> jax.Array:
        words = table_VD.shape[0] // _shards(axes[0])
        here_BT = ids_BT - jax.lax.axis_index(RULES[axes[0]]) * words if axes[0] else ids_BT  # type: ignore[index]
        here_BT = jnp.where((here_BT >= 0) & (here_BT < words), here_BT, words)  # another device's words are dropped
        part_VD = (
            jnp.zeros((words, gradient_BTD.shape[-1]), gradient_BTD.dtype).at[here_BT].add(gradient_BTD, mode="drop")
        )
        return _summed(_in_parts(part_VD, 1), ("data", "context"))

    def backward(ids_BT: jax.Array, gradient_BTD: jax.Array) -> tuple[jax.Array, None]:
        specs = (partition_spec(("batch", "sequence")), partition_spec(("batch", "sequence", None)))
        split = jax.shard_map(on_device, in_specs=specs, out_specs=partition_spec(axes), check_vma=False)
        return split(ids_BT, gradient_BTD), None

    lookup.defvjp(lambda table_VD, ids_BT: (lookup(table_VD, ids_BT), ids_BT), backward)
    return lookup(table_VD, ids_BT)


def _in_parts(part: jax.Array, dim: int) -> jax.Array:
    """The sum over `fsdp`, of which each device keeps its part along that dim: ring by ring of a TPU's torus."""
    sizes = rings(jax.sharding.get_abstract_mesh().shape["fsdp"], ambient_platform()[1])
    scatter = partial(jax.lax.psum_scatter, axis_name="fsdp", tiled=True)
    if len(sizes) == 1:
        return scatter(part, scatter_dimension=dim)
    index = np.arange(math.prod(sizes)).reshape(sizes)  # of a device along `fsdp`
    part = jnp.moveaxis(part, dim, 0)  # parts narrower than a tile are made along the slowest dim alone
    for axis, size in enumerate(sizes):
        groups = np.moveaxis(index, axis, -1).reshape(-1, size).tolist()
        part = scatter(part, scatter_dimension=0, axis_index_groups=groups)
    return jnp.moveaxis(part, 0, dim)


def _summed(part: jax.Array, names: tuple[str, ...]) -> jax.Array:
    """The sum over those mesh axes that have more than one device."""
    shape = jax.sharding.get_abstract_mesh().shape
    over = tuple(name for name in names if shape[name] > 1)
    return jax.lax.psum(part, over) if over else part


def _shards(name: str | None) -> int:
    """Devices over which a dim of that name is split."""
    return 1 if name is None else mesh_size(jax.sharding.get_abstract_mesh(), RULES[name])


def _whole(axes: Names) -> Names:
    """The names of a kernel that is gathered over `fsdp`."""
    return tuple(None if name == "embed" else name for name in axes)


def _divided(x_BTI: jax.Array, other: jax.Array, axes: Names) -> bool:
    """Whether there is a mesh, and it divides the rows, the sequence and the kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1 or any(name not in mesh.axis_names for name in MESH_AXES):
        return False
    dims = (*x_BTI.shape[:2], x_BTI.shape[2], other.shape[-1])
    names = ("batch", "sequence", *axes)
    return all(name is None or dim % mesh_size(mesh, RULES[name]) == 0 for dim, name in zip(dims, names))
