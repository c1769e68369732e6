"""A kernel that the compiler cannot split, run on each device's rows and heads."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from models.sharding import MESH_AXES, RULES, mesh_size, partition_spec


def context_devices() -> int:
    """Devices over which each row's sequence is split, on the mesh set by `jax.set_mesh`; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if any(name not in mesh.axis_names for name in MESH_AXES) else mesh_size(mesh, RULES["sequence"])


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


def over_context(
    kernel: Callable[..., jax.Array],
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    segment_ids_BT: jax.Array,
    extra: Any = (),
    extra_specs: Any = (),
) -> jax.Array:
    """`kernel(q, k, v, segments of q, segments of k, place of the first query, extra)`: queries stay split over the
    sequence, keys and values (few heads, so small beside the queries) are gathered, and their gradients reduced.

    extra: arrays that the kernel takes besides, split as `extra_specs` say.
    """
    rows, queries = partition_spec(("batch", None)), partition_spec(("batch", "sequence"))
    split, whole = (partition_spec(("batch", axis, "heads", None)) for axis in ("sequence", None))

    def on_device(q: jax.Array, k: jax.Array, v: jax.Array, of_q: jax.Array, of_k: jax.Array, extra: Any) -> jax.Array:
        return kernel(q, k, v, of_q, of_k, jax.lax.axis_index(RULES["sequence"]) * q.shape[1], extra)

    specs = (split, whole, whole, queries, rows, extra_specs)
    apart = jax.shard_map(on_device, in_specs=specs, out_specs=split, check_vma=False)
    return apart(q_BTNH, k_BSKH, v_BSKH, segment_ids_BT, segment_ids_BT, extra)
