"""Splash attention on TPU: the Pallas kernel that skips blocks above the diagonal and takes segment ids.

The kernel sees one row's heads as [N, T, H]. A Pallas call cannot be split by the compiler, so it runs inside
`shard_map`: rows over the data axes, heads over `tensor`, queries over `context`.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from models.kernels.sharded import context_devices, over_context, over_mesh
from models.sharding import partition_spec

if TYPE_CHECKING:
    from models.attention import AttentionShape

LANES = 128  # a TPU vector register is 8 x 128: tiles of queries and keys are multiples of it
# Tile sizes, tokens. Larger tiles amortise the grid's overhead; 512 is what MaxText's configs ship for v5e and v6e.
TILE = 512


def obstacle(shape: "AttentionShape", backend: str) -> str | None:
    """Why splash cannot run this shape here, or None. Off TPU it runs in Pallas' interpreter, only when asked for."""
    if shape.queries % (LANES * shape.context):
        over = f" on each of the {shape.context} devices of the context axis" if shape.context > 1 else ""
        return f"seq_len {shape.queries} is not a multiple of {LANES}{over}"
    if backend == "gpu":
        return "splash is a TPU kernel, and this is a GPU"
    return None


def attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    segment_ids_BT: Int[Array, "B T"],
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    interpret: bool,
) -> Float[Array, "B T N H"]:
    """Causal attention inside segments; see `models.attention.attention` for the arguments.

    Args:
      interpret: run in Pallas' interpreter, for machines without a TPU.
    """

    def rows(kernel: Any, q: jax.Array, k: jax.Array, v: jax.Array, of_q: jax.Array, of_k: jax.Array) -> jax.Array:
        def one_row(q: jax.Array, k: jax.Array, v: jax.Array, of_q: jax.Array, of_k: jax.Array) -> jax.Array:
            return kernel(q, k, v, segment_ids=splash_attention.SegmentIds(q=of_q, kv=of_k))

        scaled = q * jnp.asarray(scale, q.dtype)
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (scaled, k, v))  # heads before tokens
        return jax.vmap(one_row)(q, k, v, of_q, of_k).transpose(0, 2, 1, 3).astype(scaled.dtype)

    def alone(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
        return rows(_kernel(q.shape[1], q.shape[2], window, softcap, interpret), q, k, v, segments, segments)

    shards = context_devices()
    if shards == 1:
        return over_mesh(alone, q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)
    # Every device has the mask of its own queries: the mask's blocks are split as the queries are.
    kernel = _kernel(q_BTNH.shape[1], q_BTNH.shape[2], window, softcap, interpret, shards)
    mesh = jax.sharding.get_abstract_mesh()
    specs = kernel.manual_sharding_spec(NamedSharding(mesh, partition_spec((None, "sequence"))))

    def split(
        q: jax.Array, k: jax.Array, v: jax.Array, of_q: jax.Array, of_k: jax.Array, first: jax.Array, kernel: Any
    ) -> jax.Array:
        del first  # the mask knows
        return rows(kernel, q, k, v, of_q, of_k)

    return over_context(split, q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, kernel, specs)


def _kernel(
    seq_len: int, num_heads: int, window: int | None, softcap: float | None, interpret: bool, shards: int = 1
) -> Any:
    """The kernel for one row, cut into `shards` along its queries: its masks are numpy at trace time."""
    shape = (seq_len, seq_len)
    one_head = (
        splash_attention.CausalMask(shape)
        if window is None
        else splash_attention.LocalMask(shape, window_size=(window - 1, 0), offset=0)
    )
    tile = max(size for size in range(LANES, TILE + 1, LANES) if seq_len // shards % size == 0)
    sizes = splash_attention.BlockSizes(
        block_q=tile,
        block_kv=tile,
        block_kv_compute=tile,
        block_q_dkv=tile,
        block_kv_dkv=tile,
        block_kv_dkv_compute=tile,
        block_q_dq=tile,
        block_kv_dq=tile,
    )
    return splash_attention.make_splash_mha(
        mask=splash_attention.MultiHeadMask([one_head] * num_heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=shards,
        attn_logits_soft_cap=softcap,
        interpret=interpret,
    )
