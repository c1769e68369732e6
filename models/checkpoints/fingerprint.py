"""Which weights are these? Whole numbers that do not depend on mesh, device or order of summation."""

import jax
import jax.numpy as jnp
import xxhash
from flax import nnx
from jaxtyping import Array, UInt32

from models.checkpoints.weights import parameter_paths
from models.trainable import is_adapter
from models.transformer import CausalLM


@jax.jit
def checksum(values: Array) -> UInt32[Array, ""]:
    """A sum over the bits of an array in which every place has its own factor: whole numbers, so that no mesh, order of
    summation or device changes it."""
    size = values.dtype.itemsize
    bits = jax.lax.bitcast_convert_type(values, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[size]).astype(jnp.uint32)
    places = jnp.zeros(values.shape, jnp.uint32)
    for dim, length in enumerate(values.shape):
        places = places * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, values.shape, dim)
    factors = (places * jnp.uint32(2654435761)) ^ (places >> 7)  # Knuth's multiplicative hash
    return jnp.sum(bits * (factors | 1), dtype=jnp.uint32)


def combined(sums: dict[str, int]) -> str:
    """One fingerprint of many arrays' sums, by name."""
    return xxhash.xxh3_128_hexdigest(repr(sorted(sums.items())).encode())


def checksums(model: CausalLM) -> dict[str, int]:
    """The checksum of every float parameter of a model's base by its dotted path; adapters and codes are left out.

    Of the values in bfloat16, so that a base has the same ones whether it was loaded in 16 bits or in 32.
    """
    state = nnx.state(model, nnx.Param)
    leaves = dict(nnx.to_flat_state(state))
    sums = {
        name: _in_16_bits(leaves[path].get_value())
        for name, path in parameter_paths(state).items()
        if not is_adapter(name) and ".parts." not in name
    }
    return {name: int(value) for name, value in sums.items()}


@jax.jit
def _in_16_bits(values: Array) -> UInt32[Array, ""]:
    return checksum(values.astype(jnp.bfloat16))
