"""A kernel that the compiler cannot split, run on each device's rows and heads."""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from models.sharding import MESH_AXES, partition_spec


def over_mesh(
    kernel: Callable[..., jax.Array], q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, segment_ids_BT: jax.Array
) -> jax.Array:
    """`kernel(q, k, v, segment_ids)` under `shard_map` on the mesh set by `jax.set_mesh`; without a mesh, as it is.

    Rows are split over the data axes and heads over `tensor`, as the projections leave them, so nothing moves.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or any(name not in mesh.axis_names for name in MESH_AXES):
        return kernel(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)
    rows: PartitionSpec = partition_spec(("batch", None))
    heads: PartitionSpec = partition_spec(("batch", None, "heads", None))
    # check_vma: the kernels' outputs do not say over which mesh axes they vary
    split = jax.shard_map(kernel, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False)
    return split(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)
