"""What a row of a batch brings along besides its tokens: which adapter acts on it, and the key of its dropout.

Shapes: B batch, T sequence, I width.

Everything that is drawn is keyed by (seed, step, row), so that mesh, accumulation and resuming never change it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

ADAPTER_IDS, DROPOUT_KEYS = "adapter_ids", "dropout_keys"  # their names in a batch


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class RowContext:
    """One small pytree that a model call takes and hands to its adapters; no context at all: adapter 0, no dropout.

    adapter_ids_B: int32, number of the adapter that acts on the row, -1 for the base alone; None: adapter 0 on all.
    dropout_keys_B2: uint32 key data of every row (`row_keys`); None: nothing is dropped.
    """

    adapter_ids_B: Any = None  # Any, because a pytree may hold shapes or shardings in the place of arrays
    dropout_keys_B2: Any = None

    @classmethod
    def of_batch(cls, batch: Mapping[str, Array]) -> "RowContext | None":
        """What a batch brings along: `adapter_ids` [B], or [B, T] of which the first column counts, and `dropout_keys`.

        None where it brings neither.
        """
        if ADAPTER_IDS not in batch and DROPOUT_KEYS not in batch:
            return None
        ids = batch.get(ADAPTER_IDS)
        first = ids if ids is None or ids.ndim == 1 else ids[:, 0]
        return cls(adapter_ids_B=first, dropout_keys_B2=batch.get(DROPOUT_KEYS))

    def of_layer(self, index: Int[Array, ""] | int) -> "RowContext":
        """The context with the keys of one layer."""
        if self.dropout_keys_B2 is None:
            return self
        return replace(self, dropout_keys_B2=folded(self.dropout_keys_B2, index))


def row_keys(seed: int, step: Int[Array, ""], rows: int) -> UInt32[Array, "B 2"]:
    """A key for every row of the global batch of a step, as plain numbers that a batch can carry."""
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), step)
    return jax.random.key_data(jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows)))


def folded(keys_B2: UInt32[Array, "B 2"], number: Int[Array, ""] | int) -> UInt32[Array, "B 2"]:
    """Keys of another stream, the same for every row."""
    keys_B = jax.random.wrap_key_data(keys_B2, impl="threefry2x32")
    return jax.random.key_data(jax.vmap(lambda key: jax.random.fold_in(key, number))(keys_B))


def dropped(x_BTI: Float[Array, "B T I"], rate: float, rows: RowContext | None, stream: int) -> Float[Array, "B T I"]:
    """The input with elements set to zero at `rate`, the rest divided by 1 - rate; as it is where no key is given.

    stream: a number of the module that asks, so that no two modules drop alike.
    """
    if rate == 0.0 or rows is None or rows.dropout_keys_B2 is None:
        return x_BTI
    bits_BTI = element_bits(folded(rows.dropout_keys_B2, stream), x_BTI.shape[1:])
    keep_BTI = bits_BTI >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep_BTI, x_BTI / (1.0 - rate), 0)  # so that the backward pass keeps a byte of each, not four


def element_bits(keys_B2: UInt32[Array, "B 2"], shape: tuple[int, ...]) -> UInt32[Array, "B ..."]:
    """32 bits for every element of every row: its number, mixed with both words of the row's key.

    The mixer is MurmurHash3's finaliser (Appleby 2008), twice. What decides dropout need not be a cipher: for 1,024 x
    576 numbers on a CPU core threefry took 136 ms and this 2, and a step draws them for every adapted projection.
    """
    numbers = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    words = keys_B2.reshape(len(keys_B2), 2, *[1] * len(shape))
    bits = numbers * jnp.uint32(0x9E3779B9) + words[:, 0]
    for word in (words[:, 1], words[:, 0]):
        bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
        bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
        bits = (bits ^ (bits >> 16)) + word
    return bits
