"""Optimizer moments at rest in 8 bits (Dettmers et al. 2022, arXiv:2110.02861): blocks, a maximum each, a dynamic map.

Every array of an inner optimizer's state becomes two: `codes`, uint8 of the same shape, which therefore lies on the
devices as its parameter does, and `scales`, float32, one for each block along one of the last two dims. The
update itself runs in float32. Arrays below 4,096 elements stay as they are (section 2.3 of the paper's code release).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from models.quantize import dynamic_map, nearest_of_many

BLOCK = 256  # elements of a scale at most
SMALLEST = 4096  # elements of an array that is stored in 8 bits


class EightBitState(NamedTuple):
    """rest: the inner state with what is quantised left out; codes, scales: the quantised arrays, None elsewhere."""

    rest: Any
    codes: Any
    scales: Any


def stored_in_8_bits(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` with its large float arrays kept in 8 bits between steps.

    An array with a negative element takes the signed map, the others (second moments) the unsigned one, which has
    another bit for small values: which is which is decided by name, as `nu` of optax's Adam is the one without signs.
    """

    def shrink(state: Any) -> EightBitState:
        def part(index: int) -> Any:
            def choose(path: tuple, leaf: Array) -> Any:
                if not is_large(leaf):
                    return leaf if index == 0 else None
                return None if index == 0 else compress(leaf, signed=is_signed(path))[index - 1]

            return jax.tree_util.tree_map_with_path(choose, state)

        return EightBitState(part(0), part(1), part(2))

    def grow(state: EightBitState) -> Any:
        def choose(path: tuple, leaf: Any, codes: Any, scales: Any) -> Array:
            return leaf if codes is None else expand(codes, scales, signed=is_signed(path))

        none = lambda leaf: leaf is None  # noqa: E731
        return jax.tree_util.tree_map_with_path(choose, state.rest, state.codes, state.scales, is_leaf=none)

    def update(updates: Any, state: EightBitState, params: Any = None) -> tuple[Any, EightBitState]:
        updates, state = inner.update(updates, grow(state), params)
        return updates, shrink(state)

    return optax.GradientTransformation(lambda params: shrink(inner.init(params)), update)


def is_large(leaf: Array) -> bool:
    """Whether an array of a state is stored in 8 bits."""
    return leaf.ndim >= 2 and leaf.size >= SMALLEST and jnp.issubdtype(leaf.dtype, jnp.floating)


def is_signed(path: tuple) -> bool:
    """Whether the array at a path of an optimizer's state may have negative elements: all but second moments."""
    return not any(getattr(key, "name", None) == "nu" for key in path)


def compress(x: Float[Array, "*dims"], *, signed: bool) -> tuple[Array, Array]:
    """(codes of the shape of x, scales), blocks as of `blocking`."""
    axis, block = blocking(x.shape)
    blocks = jnp.moveaxis(x, axis, -1)
    blocks = blocks.reshape(*blocks.shape[:-1], -1, block)
    scales = jnp.max(jnp.abs(blocks), axis=-1)
    unit = blocks / jnp.where(scales == 0, 1.0, scales)[..., None]
    codes = nearest_of_many(unit, dynamic_map(signed))
    return jnp.moveaxis(codes.reshape(*codes.shape[:-2], -1), -1, axis), jnp.moveaxis(scales, -1, axis)


def expand(codes: Array, scales: Array, *, signed: bool) -> Float[Array, "*dims"]:
    """What `compress` took, as near as 8 bits give it, float32."""
    axis, block = blocking(codes.shape)
    values = jnp.asarray(dynamic_map(signed))[codes]
    return values * jnp.repeat(scales, block, axis=axis)


def blocking(shape: tuple[int, ...]) -> tuple[int, int]:
    """(the axis along which blocks lie, elements of a block), of the last two: a length's largest divisor up to 256.

    The longer blocks are taken, of two that are as long those along the longer axis: a table of 32,003 words, which is
    a prime, has a scale for every 256 of its columns and not one for each of its elements.
    """
    found = []
    for axis in (-1, -2):
        block = max(size for size in range(1, BLOCK + 1) if shape[axis] % size == 0)
        found.append((block, shape[axis], axis))
    block, _, axis = max(found)
    return axis, block
