"""Keys and values that were read, kept for decoding: static shapes, passed in and given back; attention to them.

Shapes: B batch, T new tokens, S cache slots, N query heads, K kv heads, G = N / K, R = G T, H head dim, L layers.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from models.config import ModelConfig
from models.kernels.dense import MASKED, visible


@partial(jax.tree_util.register_dataclass, data_fields=["k", "v", "segment_ids_BS", "length_B"], meta_fields=[])
@dataclass(frozen=True)
class KVCache:
    """Keys and values of the tokens that were read, for decoding.

    `k` is [L, B, K, H, S] and `v` [L, B, K, S, H] for a stacked model; for an unstacked one both are tuples of L arrays
    without the first axis. In that layout each product of attention is a plain one, nothing transposed.
    `length_B` is each row's number of tokens; a row's next token goes to that slot. Padding (segment 0) must stand at
    the end of what is passed in: it is written, not counted, and then overwritten.
    """

    k: Any
    v: Any
    segment_ids_BS: Any  # arrays [B, S] and [B]; Any, because a pytree may hold shapes or shardings in their place
    length_B: Any


def init_cache(
    config: ModelConfig, batch_size: int, num_slots: int, *, stacked: bool = True, dtype: str | None = None
) -> KVCache:
    """An empty cache for `batch_size` rows of at most `num_slots` tokens.

    Args:
      stacked: the layout for a model with stacked layers; False: for one from `models.transformer.unstacked`.
      dtype: of keys and values; None: the model's compute dtype.
    """
    dtype = config.dtype if dtype is None else dtype

    def empty(*of_head: int) -> Any:
        shape = (batch_size, config.num_kv_heads, *of_head)
        if stacked:
            return jnp.zeros((config.num_layers, *shape), dtype)
        return tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers))

    slots_BS = jnp.zeros((batch_size, num_slots), jnp.int32)
    k, v = empty(config.head_dim, num_slots), empty(num_slots, config.head_dim)
    return KVCache(k, v, slots_BS, jnp.zeros((batch_size,), jnp.int32))


def write_slots(ids_BS: Int[Array, "B S"], new_BT: Int[Array, "B T"], start_B: Int[Array, "B"]) -> Int[Array, "B S"]:
    """`ids` with each row's new ones at its own slots `start .. start + T`; those past the end are left out."""
    rows_B1, slots_BT = _places(ids_BS.shape[0], new_BT.shape[1], start_B)
    return ids_BS.at[rows_B1, slots_BT].set(new_BT.astype(ids_BS.dtype), mode="drop")


def write_kv(
    cache: KVCache, k_BTKH: Float[Array, "B T K H"], v_BTKH: Float[Array, "B T K H"]
) -> tuple[Float[Array, "B K H S"], Float[Array, "B K S H"]]:
    """One layer's keys and values with each row's new ones at its own slots; those past the end are left out."""
    rows_B1, slots_BT = _places(k_BTKH.shape[0], k_BTKH.shape[1], cache.length_B)
    k_BKHS = cache.k.at[rows_B1, :, :, slots_BT].set(k_BTKH.astype(cache.k.dtype), mode="drop")
    v_BKSH = cache.v.at[rows_B1, :, slots_BT].set(v_BTKH.astype(cache.v.dtype), mode="drop")
    return k_BKHS, v_BKSH


def _places(rows: int, length: int, start_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.arange(rows)[:, None], start_B[:, None] + jnp.arange(length)


def cached_attention(
    q_BTNH: Float[Array, "B T N H"],
    cache: KVCache,
    segment_ids_BT: Int[Array, "B T"],
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Float[Array, "B T N H"]:
    """Causal attention of new tokens to one layer's cache, which holds them already; see `models.attention.attention`.

    One formula on every backend: there are few queries, and the time goes into reading the cache.
    """
    batch, queries, heads, dim = q_BTNH.shape
    kv_heads = cache.k.shape[1]
    q_BTKGH = q_BTNH.reshape(batch, queries, kv_heads, heads // kv_heads, dim)
    q_BKRH = jnp.transpose(q_BTKGH, (0, 2, 3, 1, 4)).reshape(batch, kv_heads, -1, dim)
    scores_BKRS = scale * jax.lax.dot_general(
        q_BKRH.astype(cache.k.dtype), cache.k, (((3,), (2,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32
    )
    if softcap is not None:
        scores_BKRS = softcap * jnp.tanh(scores_BKRS / softcap)
    start_B = cache.length_B
    mask_BTS = visible(segment_ids_BT, cache.segment_ids_BS, start_B, window)
    scores_BKGTS = scores_BKRS.reshape(batch, kv_heads, -1, queries, scores_BKRS.shape[-1])
    weights_BKGTS = jax.nn.softmax(jnp.where(mask_BTS[:, None, None], scores_BKGTS, MASKED), axis=-1)
    weights_BKRS = weights_BKGTS.reshape(scores_BKRS.shape).astype(cache.v.dtype)
    out_BKRH = jax.lax.dot_general(weights_BKRS, cache.v, (((3,), (2,)), ((0, 1), (0, 1))))
    out_BKGTH = out_BKRH.reshape(batch, kv_heads, -1, queries, dim)
    return jnp.transpose(out_BKGTH, (0, 3, 1, 2, 4)).reshape(q_BTNH.shape).astype(q_BTNH.dtype)


def with_kv(cache: KVCache, k: jax.Array, v: jax.Array) -> KVCache:
    """The cache with one layer's keys and values."""
    return KVCache(k, v, cache.segment_ids_BS, cache.length_B)
