"""Keys and values that were read, kept for decoding: static shapes, passed in and given back.

Shapes: B batch, T new tokens, S cache slots, K kv heads, H head dim, L layers.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from models.config import ModelConfig


@partial(jax.tree_util.register_dataclass, data_fields=["k", "v", "segment_ids_BS", "length_B"], meta_fields=[])
@dataclass(frozen=True)
class KVCache:
    """Keys and values of the tokens that were read, for decoding.

    `k` and `v` are [L, B, S, K, H] for a stacked model and a tuple of L arrays [B, S, K, H] for an unstacked one.
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
    shape = (batch_size, num_slots, config.num_kv_heads, config.head_dim)
    dtype = config.dtype if dtype is None else dtype

    def empty() -> Any:
        if stacked:
            return jnp.zeros((config.num_layers, *shape), dtype)
        return tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers))

    slots_BS = jnp.zeros((batch_size, num_slots), jnp.int32)
    return KVCache(empty(), empty(), slots_BS, jnp.zeros((batch_size,), jnp.int32))


def write_slots(cache_BSX: jax.Array, new_BTX: jax.Array, start_B: jax.Array) -> jax.Array:
    """The cache with each row's new entries at its own slots `start .. start + T`; those past the end are left out."""
    slots_BT = start_B[:, None] + jnp.arange(new_BTX.shape[1])
    rows_B1 = jnp.arange(cache_BSX.shape[0])[:, None]
    return cache_BSX.at[rows_B1, slots_BT].set(new_BTX.astype(cache_BSX.dtype), mode="drop")


def with_kv(cache: KVCache, k: jax.Array, v: jax.Array) -> KVCache:
    """The cache with one layer's keys and values."""
    return KVCache(k, v, cache.segment_ids_BS, cache.length_B)
