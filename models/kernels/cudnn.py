"""cuDNN's flash attention on CUDA, two ways.

`cudnn_packed` tells cuDNN where every segment begins and how long it is (Hopper and later), so that work grows with the
segments and no mask exists. jax reaches it only through a private module, whose own helper multiplies the offsets of
keys by the number of query heads (wrong for grouped heads: jax-ml/jax pull 39521), so the offsets are computed here and
its primitives are called directly.

`cudnn` is jax's public path: the segments are a mask of [B, T, T] in memory.
"""

import functools
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from models.kernels.dense import masked_attention, visible
from models.kernels.sharded import over_mesh

if TYPE_CHECKING:
    from models.attention import AttentionShape

# Segments a row, on average over a device's rows, that the packed kernel has room for: its saved softmax statistics
# take MAX_SEGMENTS * N * T floats a row. A batch with more goes to the public path, which is as exact and slower.
MAX_SEGMENTS = 32
HOPPER_AND_LATER = ("H20", "H100", "H200", "H800", "GH200", "B100", "B200", "B300", "GB200", "GB300")


def obstacle(shape: "AttentionShape", backend: str) -> str | None:
    """What both ways need, or None."""
    if backend != "gpu":
        return f"cuDNN runs on CUDA, and this is a {backend}"
    if shape.context > 1:
        return "cuDNN's causal mask begins at the first key, and a context mesh has queries that begin later"
    if shape.softcap is not None:
        return "cuDNN's kernel has no soft cap"
    if shape.dtype != "bfloat16":
        return f"cuDNN's kernel takes bfloat16, and the model computes in {shape.dtype}"
    if shape.queries % 2:
        return f"seq_len {shape.queries} is odd, and cuDNN's kernel with a mask takes even ones"
    if shape.head_dim % 8:
        return f"head_dim {shape.head_dim} is not a multiple of 8"
    return None


def public_obstacle(shape: "AttentionShape", backend: str) -> str | None:
    """Why jax's public cuDNN path cannot run this shape here, or None."""
    if reason := obstacle(shape, backend):
        return reason
    if shape.head_dim > 128:
        return f"head_dim {shape.head_dim} is over 128"
    return None


def packed_obstacle(shape: "AttentionShape", backend: str, device_kind: str) -> str | None:
    """Why cuDNN's packed kernel cannot run this shape here, or None. On a real GPU it is tried once, and checked."""
    if reason := obstacle(shape, backend):
        return reason
    if not any(name in device_kind for name in HOPPER_AND_LATER):
        return f"packed rows need Hopper or later, and this is {device_kind!r}"
    if shape.head_dim > 128:
        return f"head_dim {shape.head_dim} is over 128"
    if jax.default_backend() != "gpu":
        return None  # compiled for a GPU that is not here: nothing can be tried
    return _trial()


@functools.cache
def _trial() -> str | None:
    """Runs the packed kernel once on this machine's GPU, forward and backward, against the plain formula."""
    draw = np.random.default_rng(0).standard_normal
    q, k, v, upstream = (jnp.asarray(draw((2, 256, heads, 64)), jnp.bfloat16) for heads in (4, 2, 2, 4))
    segments = jnp.asarray(np.repeat([[1, 2, 3, 0], [1, 1, 2, 2]], 64, axis=1), jnp.int32)

    def packed(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.vdot(_packed_rows(q, k, v, segments, 0.125, None).astype(jnp.float32), upstream)

    def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        out = masked_attention(q, k, v, visible(segments, segments, None, None), scale=0.125, softcap=None)
        return jnp.vdot(out.astype(jnp.float32), upstream)

    try:
        with jax.ensure_compile_time_eval():
            results = [jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(q, k, v) for f in (packed, plain)]
            for ours, reference in zip(*map(jax.tree.leaves, results)):
                ours, reference = np.asarray(ours, np.float32), np.asarray(reference, np.float32)
                error = np.linalg.norm(ours - reference) / np.linalg.norm(reference)
                if not error < 0.02:  # bfloat16 rounding gives about 0.005
                    return f"cuDNN's packed kernel is off by {error:.3f} of the plain formula on this machine"
    except Exception as error:  # a private interface: whatever it raises is the reason
        return f"cuDNN's packed kernel failed here ({type(error).__name__}: {str(error).splitlines()[0][:200]})"
    return None


def public_attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    segment_ids_BT: Int[Array, "B T"],
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Float[Array, "B T N H"]:
    """Causal attention inside segments, by `jax.nn.dot_product_attention` with the segments as its mask."""
    del softcap  # refused by `obstacle`
    rows = functools.partial(_masked_rows, scale=scale, window=window)
    return over_mesh(rows, q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)


def _masked_rows(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, scale: float, window: int | None
) -> jax.Array:
    mask = segments[:, None, :, None] == segments[:, None, None, :]
    local = None if window is None else (window - 1, 0)
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, scale=scale, is_causal=True, local_window_size=local, implementation="cudnn"
    )


def packed_attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    segment_ids_BT: Int[Array, "B T"],
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Float[Array, "B T N H"]:
    """Causal attention inside segments, by cuDNN's kernel for packed rows."""
    del softcap  # refused by `obstacle`
    rows = functools.partial(_packed_rows, scale=scale, window=window)
    return over_mesh(rows, q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)


def segment_layout(
    segment_ids_BT: Int[Array, "B T"], max_segments: int
) -> tuple[Int[Array, "B M"], Int[Array, "B M"], Int[Array, ""]]:
    """Lengths and first tokens of the runs of equal segment ids, as cuDNN wants them.

    Runs of the whole batch stand one after another (row 0's first), tokens counted through the flattened [B * T]; what
    is left of the [B, M] places has length 0 and begins at B * T. Padding is a run like any other.

    Returns:
      lengths, first tokens, and the number of runs, which may be more than there are places for.
    """
    batch, length = segment_ids_BT.shape
    places, tokens = batch * max_segments, batch * length
    begins_BT = jnp.concatenate([jnp.ones((batch, 1), bool), segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]], axis=1)
    first = jnp.nonzero(begins_BT.reshape(-1), size=places + 1, fill_value=tokens)[0].astype(jnp.int32)
    lengths = jnp.diff(first)
    return lengths.reshape(batch, -1), first[:-1].reshape(batch, -1), jnp.sum(begins_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _packed_rows(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, scale: float, window: int | None
) -> jax.Array:
    return _packed_forward(q, k, v, segments, scale, window)[0]


def check_offsets(shape: tuple[int, ...]) -> None:
    """ValueError where a device's queries, [B, T, N, H], are more than int32 offsets reach: they would wrap, unsaid."""
    if (size := math.prod(shape)) >= 1 << 31:
        raise ValueError(
            f"cuDNN's packed kernel has int32 offsets, and a device's queries have B x T x N x H = {size:,} "
            "elements: raise train.grad_accum_steps, or set model.execution.kernel='cudnn'"
        )


def _packed_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, scale: float, window: int | None
) -> tuple[jax.Array, Any]:
    check_offsets(q.shape)
    batch, length, heads, _ = q.shape
    lengths, first, runs = segment_layout(segments, MAX_SEGMENTS)

    def packed() -> tuple[jax.Array, ...]:
        return _bind("fwd", (q, k, v), (), lengths, first, scale, window)

    def masked() -> tuple[jax.Array, ...]:
        return _masked_rows(q, k, v, segments, scale, window), jnp.zeros(
            (batch * MAX_SEGMENTS, heads, length), jnp.float32
        )

    out, statistics = jax.lax.cond(runs <= batch * MAX_SEGMENTS, packed, masked)
    return out, (q, k, v, segments, out, statistics)


def _packed_backward(scale: float, window: int | None, saved: Any, d_out: jax.Array) -> tuple[Any, ...]:
    q, k, v, segments, out, statistics = saved
    lengths, first, runs = segment_layout(segments, MAX_SEGMENTS)

    def packed() -> tuple[jax.Array, ...]:
        return _bind("bwd", (q, k, v), (statistics, out, d_out), lengths, first, scale, window)

    def masked() -> tuple[jax.Array, ...]:
        return jax.vjp(lambda q, k, v: _masked_rows(q, k, v, segments, scale, window), q, k, v)[1](d_out)

    gradients = jax.lax.cond(runs <= q.shape[0] * MAX_SEGMENTS, packed, masked)
    return (*gradients, np.zeros(segments.shape, jax.dtypes.float0))


_packed_rows.defvjp(_packed_forward, _packed_backward)


def _bind(
    direction: str,
    qkv: tuple[jax.Array, jax.Array, jax.Array],
    saved: tuple[jax.Array, ...],
    lengths: jax.Array,
    first: jax.Array,
    scale: float,
    window: int | None,
) -> tuple[jax.Array, ...]:
    """Calls jax's primitive for the kernel. Offsets are elements from the start of each buffer, so they carry the
    buffer's own heads times head_dim."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    q, k, _ = qkv
    unused = jnp.zeros(0, q.dtype)
    room = q.shape[0] * q.shape[1]  # one more offset than segments: the end of the buffer
    ends = jnp.full((first.shape[0], 1), room, first.dtype)
    starts = jnp.concatenate([first.reshape(-1), ends.reshape(-1)]).reshape(first.shape[0], -1)
    q_offsets, kv_offsets = starts * (q.shape[2] * q.shape[3]), starts * (k.shape[2] * k.shape[3])
    settings = {
        "scale": scale,
        "seed": 0,
        "dropout_rate": 0.0,
        "variadic_args": (False, False),
        "mask_type": fused.MaskType.PADDING_CAUSAL,
        "layout": fused.AttentionLayout.BTNH.value,
        "sliding_window_length": window,
    }
    operands = (*qkv, unused, lengths, lengths, q_offsets, kv_offsets, unused, unused)
    if direction == "fwd":
        return tuple(fused._dot_product_attention_fwd_p.bind(*operands, **settings, is_training=True))
    return tuple(fused._dot_product_attention_bwd_p.bind(*operands, *saved, **settings))
