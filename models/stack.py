"""How the layers of a model are run: one after the other, or as a scan over layers whose parameters are stacked.

Shapes: B batch, T sequence, D embed, L layers.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from models.attention import ambient_platform
from models.cache import KVCache, with_kv
from models.config import ModelConfig, Rotary
from models.rows import RowContext

UNROLLED = 12  # layers up to which a CPU's scan is written out; 30 took 80 s longer to compile, and no step was faster

Tables = dict[Rotary, tuple[jax.Array, jax.Array]]


def run_layers(
    layers: Any,
    config: ModelConfig,
    x_BTD: Float[Array, "B T D"],
    segment_ids_BT: Int[Array, "B T"],
    tables: Tables,
    cache: KVCache | None = None,
    rows: RowContext | None = None,
) -> tuple[Float[Array, "B T D"], Any]:
    """The output of the last layer, and the keys and values of all layers with the new tokens; None without a cache.

    layers: an `nnx.List` of layers, run in turn, or one layer whose arrays are [L, ...], scanned. Each is called with
    (x_BTD, segment_ids_BT, its block, tables, its part of the cache, its rows).
    """
    run = _looped if isinstance(layers, nnx.List) else _scanned
    return run(layers, config, x_BTD, segment_ids_BT, tables, cache, rows)


def _looped(
    layers: Any,
    config: ModelConfig,
    x_BTD: jax.Array,
    segment_ids_BT: jax.Array,
    tables: Tables,
    cache: KVCache | None,
    rows: RowContext | None,
) -> Any:
    kvs = []
    for index, (layer, block) in enumerate(zip(layers, config.blocks)):
        of_layer = None if cache is None else with_kv(cache, cache.k[index], cache.v[index])
        own_rows = None if rows is None else rows.of_layer(index)
        x_BTD, kv = layer(x_BTD, segment_ids_BT, block, tables, of_layer, own_rows)
        kvs.append(kv)
    return x_BTD, (None if cache is None else tuple(zip(*kvs)))


def _scanned(
    layers: Any,
    config: ModelConfig,
    x_BTD: jax.Array,
    segment_ids_BT: jax.Array,
    tables: Tables,
    cache: KVCache | None,
    rows: RowContext | None,
) -> Any:
    """Scans over groups of `period` layers, the smallest that repeats; what is left over comes last."""
    blocks, period = config.blocks, config.period
    graph, state = nnx.split(layers)
    drawing = rows is not None and rows.dropout_keys_B2 is not None
    numbers = jnp.arange(config.num_layers) if drawing else None  # for what is drawn layer by layer
    stacked = (state, None if cache is None else (cache.k, cache.v), numbers)

    def run_group(x_BTD: jax.Array, group: Any) -> tuple[jax.Array, Any]:
        kvs = []
        for place in range(jax.tree.leaves(group)[0].shape[0] if period > 1 else 1):
            params, kv, number = jax.tree.map(lambda leaf, i=place: leaf[i], group) if period > 1 else group
            of_layer = None if cache is None else with_kv(cache, *kv)
            own_rows = rows if rows is None or number is None else rows.of_layer(number)
            run = lambda params, x, of_layer, own_rows, block=blocks[place]: nnx.merge(graph, params)(  # noqa: E731
                x, segment_ids_BT, block, tables, of_layer, own_rows
            )
            x_BTD, kv = rematerialised(run, config.execution.remat)(params, x_BTD, of_layer, own_rows)
            kvs.append(kv)
        if period == 1 or cache is None:
            return x_BTD, kvs[0]
        return x_BTD, jax.tree.map(lambda *leaves: jnp.stack(leaves), *kvs)

    # A layer's weights must be what the scan hands out, not a slice of it: then the backward pass reads them where
    # they are. Of slices the scan keeps a copy, all layers long.
    if period == 1:
        return jax.lax.scan(run_group, x_BTD, stacked, unroll=scan_unroll(config, config.num_layers))
    groups = config.num_layers // period
    whole = jax.tree.map(lambda leaf: leaf[: groups * period].reshape(groups, period, *leaf.shape[1:]), stacked)
    x_BTD, kv = jax.lax.scan(run_group, x_BTD, whole, unroll=scan_unroll(config, groups))
    kv = jax.tree.map(lambda leaf: leaf.reshape(groups * period, *leaf.shape[2:]), kv)
    if groups * period < config.num_layers:
        x_BTD, rest = run_group(x_BTD, jax.tree.map(lambda leaf: leaf[groups * period :], stacked))
        kv = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), kv, rest)
    return x_BTD, kv


def rematerialised(function: Any, remat: str) -> Any:
    """The function, recomputed in the backward pass as `Execution.remat` says."""
    if remat == "none":
        return function
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(function, policy=policy)


def scan_unroll(config: ModelConfig, groups: int) -> int:
    """Groups of layers an iteration of the scan writes out."""
    asked = config.execution.scan_unroll
    if asked == 0:
        return groups if ambient_platform()[0] == "cpu" and groups <= UNROLLED else 1
    return max(1, min(groups, asked // config.period))
