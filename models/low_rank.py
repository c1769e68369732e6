"""A matrix as a base and a low-rank update: what adapters begin from that hold a part of the weights (PiSSA,
OLoRA, LoftQ).

Shapes: I and O the sides of a matrix, R rank.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LOFTQ_ROUNDS = 5  # alternations of quantising and approximating
SUBSPACE_ROUNDS = 8  # products with W and its transpose; 8 are within 1e-3 of the exact singular values here


def split_kernel(
    kernel: Float[Array, "*layers I O"],
    rank: int,
    scale: float,
    init: str,
    key: Array,
    round_trip: Callable[[Array], Array] | None,
) -> tuple[Array, Array, Array]:
    """(a, b, base) with base + scale a b = kernel, or close to it where the base is then quantised.

    PiSSA: scale a b is the best approximation of that rank. OLoRA: a and b are the first columns of R' and
    rows of Q' of the transposed matrix's QR decomposition, as they are. LoftQ: five rounds of PiSSA on what
    quantisation loses.
    """

    def of_layer(given: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        w, key = given
        w32 = w.astype(jnp.float32)
        if init == "olora":
            q, r = jnp.linalg.qr(w32.T)
            a, b = r[:rank].T, q[:, :rank].T
            return a, b, (w32 - scale * jnp.matmul(a, b, precision="highest")).astype(w.dtype)
        if init != "loftq":
            a, b = leading(w32, rank, key if init == "pissa_fast" else None)
            a, b = a / scale**0.5, b / scale**0.5
            return a, b, (w32 - scale * a @ b).astype(w.dtype)
        assert round_trip is not None
        base, a, b = w32, jnp.zeros((w.shape[0], rank)), jnp.zeros((rank, w.shape[1]))
        for _ in range(LOFTQ_ROUNDS):
            base = w32 - scale * a @ b
            a, b = leading(w32 - round_trip(base), rank, None)
            a, b = a / scale**0.5, b / scale**0.5
        return a, b, base.astype(w.dtype)

    if init == "loftq" and round_trip is None:
        raise ValueError("lora.init='loftq' makes up for quantisation: set quantize=NF4(), or take another init")
    flat = kernel.reshape(-1, *kernel.shape[-2:])
    a, b, base = jax.lax.map(of_layer, (flat, jax.random.split(key, len(flat))))
    layers = kernel.shape[:-2]
    return tuple(part.reshape(*layers, *part.shape[1:]) for part in (a, b, base))  # type: ignore[return-value]


def leading(w_IO: Float[Array, "I O"], rank: int, key: Array | None) -> tuple[Array, Array]:
    """(a, b) with a b the best approximation of that rank; with a key, nearly so, by subspace iteration.

    Halko, Martinsson and Tropp 2011, algorithm 4.4, with eight directions more than the rank.
    """
    if key is None:
        u, s, v = jnp.linalg.svd(w_IO, full_matrices=False)
    else:
        draws = jax.random.normal(key, (w_IO.shape[1], min(rank + 8, *w_IO.shape)))
        q, _ = jnp.linalg.qr(w_IO @ draws)
        for _ in range(SUBSPACE_ROUNDS):
            q, _ = jnp.linalg.qr(w_IO.T @ q)
            q, _ = jnp.linalg.qr(w_IO @ q)
        u, s, v = jnp.linalg.svd(q.T @ w_IO, full_matrices=False)
        u = q @ u
    root = jnp.sqrt(s[:rank])
    return u[:, :rank] * root, root[:, None] * v[:rank]
