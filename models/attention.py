"""Attention over packed rows: one function, and the kernel that each backend runs it with.

A query sees a key when both belong to the same segment, the key is not after the query, and the key is inside the
window. Padding is segment 0 and sees padding, so no row of scores is ever empty and nothing becomes NaN.

Shapes: B batch, T queries, S keys, N query heads, K key/value heads, G = N / K, H head dim.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models.config import KernelName
from models.kernels import cudnn, splash
from models.kernels.sharded import context_devices, over_context
from models.sharding import constrain

MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)  # finite, so that a fully masked row gives no NaN
DENSE_SCORES = (
    1024 * 1024
)  # scores a head up to which the dense kernel is faster than blocks (tests/bench/attention.py)
BLOCK = 512  # queries a block of the blockwise kernel; memory is BLOCK * S scores a head
GROUPS = 4  # groups of blocks, each over the keys up to its end


@dataclass(frozen=True)
class KernelChoice:
    """The kernel that will run, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """What the choice of a kernel depends on."""

    queries: int
    keys: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    window: int | None = None
    softcap: float | None = None
    context: int = 1  # devices over which the sequence is split


def ambient_platform() -> tuple[str, str]:
    """Platform ("cpu", "gpu", "tpu") and device kind that is traced for: of the mesh that is set, or the default.

    A mesh of devices that do not exist here (a compile for another machine) answers for them.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    if device is not None:
        return ("gpu" if device.platform in ("cuda", "rocm") else device.platform), device.device_kind
    return jax.default_backend(), jax.devices()[0].device_kind


def choose_kernel(
    shape: AttentionShape, kernel: KernelName = "auto", platform: tuple[str, str] | None = None
) -> KernelChoice:
    """Picks the kernel for a shape on a platform, or checks the one that was asked for.

    Args:
      kernel: "auto", or a name that is then used or refused, never replaced.
      platform: platform and device kind; None: `ambient_platform()`.

    Raises:
      ValueError: the kernel asked for cannot do it here; says why.
    """
    backend, kind = ambient_platform() if platform is None else platform
    obstacles = {
        "dense": None,
        "blockwise": None,
        "splash": splash.obstacle(shape, backend),
        "cudnn_packed": cudnn.packed_obstacle(shape, backend, kind),
        "cudnn": cudnn.public_obstacle(shape, backend),
    }
    if kernel != "auto":
        if obstacles[kernel]:
            raise ValueError(f"attention kernel {kernel!r} was asked for and cannot run: {obstacles[kernel]}")
        return KernelChoice(kernel, "asked for")
    return _automatic(shape, backend, obstacles)


def _automatic(shape: AttentionShape, backend: str, obstacles: dict[str, str | None]) -> KernelChoice:
    why_not = ""
    for name, wanted in (("splash", "tpu"), ("cudnn_packed", "gpu"), ("cudnn", "gpu")):
        if backend == wanted:
            if obstacles[name] is None:
                return KernelChoice(name, f"fused kernel of this {backend}, segments included{why_not}")
            why_not += f"; not {name}: {obstacles[name]}"
    if shape.queries * shape.keys <= DENSE_SCORES:
        return KernelChoice("dense", f"{shape.queries} x {shape.keys} scores a head are fastest whole{why_not}")
    return KernelChoice("blockwise", f"memory grows with the sequence, not with its square{why_not}")


def attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    *,
    segment_ids_BT: Int[Array, "B T"],
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    kernel: KernelName = "auto",
) -> Float[Array, "B T N H"]:
    """Causal attention inside segments, of tokens to themselves. With a cache: models.cache.cached_attention.

    Args:
      segment_ids_BT: segment of every token; 0 is padding.
      scale: factor on q k^T.
      window: a query sees itself and the `window - 1` keys before it.
      softcap: scores become softcap * tanh(scores / softcap).
      kernel: see `choose_kernel`.

    Returns:
      In q's dtype; scores and softmax are float32.

    Raises:
      ValueError: the kernel asked for cannot honour all of this here.
    """
    shape = AttentionShape(
        queries=q_BTNH.shape[1],
        keys=k_BSKH.shape[1],
        num_heads=q_BTNH.shape[2],
        num_kv_heads=k_BSKH.shape[2],
        head_dim=q_BTNH.shape[3],
        dtype=str(q_BTNH.dtype),
        window=window,
        softcap=softcap,
        context=context_devices(),
    )
    name = choose_kernel(shape, kernel).name
    common: Any = {"scale": scale, "window": window, "softcap": softcap}
    if name == "splash":
        interpret = ambient_platform()[0] != "tpu"
        return splash.attention(q_BTNH, k_BSKH, v_BSKH, segment_ids_BT, **common, interpret=interpret)
    if name == "cudnn_packed":
        return cudnn.packed_attention(q_BTNH, k_BSKH, v_BSKH, segment_ids_BT, **common)
    if name == "cudnn":
        return cudnn.public_attention(q_BTNH, k_BSKH, v_BSKH, segment_ids_BT, **common)
    if name == "blockwise" and shape.context == 1:
        return blockwise_attention(q_BTNH, k_BSKH, v_BSKH, segment_ids_BT, **common)
    if name == "blockwise":

        def blocks(q: Array, k: Array, v: Array, of_q: Array, of_k: Array, first: Array, _: Any) -> Array:
            return blockwise_attention(q, k, v, of_q, kv_segment_ids_BS=of_k, first_query=first, **common)

        return over_context(blocks, q_BTNH, k_BSKH, v_BSKH, segment_ids_BT)
    if shape.context > 1:
        k_BSKH, v_BSKH = (constrain(x, ("batch", None, "kv_heads", None)) for x in (k_BSKH, v_BSKH))
    mask = visible(segment_ids_BT, segment_ids_BT, None, window)
    return masked_attention(q_BTNH, k_BSKH, v_BSKH, mask, scale=scale, softcap=softcap)


def visible(
    segment_ids_BT: Int[Array, "B T"],
    kv_segment_ids_BS: Int[Array, "B S"],
    offset_B: Int[Array, "B"] | None,
    window: int | None,
) -> Bool[Array, "B T S"]:
    """Which keys each query sees. A row's first query stands at key `offset_B`; None: at key 0."""
    queries = jnp.arange(segment_ids_BT.shape[1])[None, :] + (0 if offset_B is None else offset_B[:, None])
    distance = queries[:, :, None] - jnp.arange(kv_segment_ids_BS.shape[1])
    mask = distance >= 0
    if window is not None:
        mask &= distance < window
    return mask & (segment_ids_BT[:, :, None] == kv_segment_ids_BS[:, None, :])


def masked_attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    mask_BTS: Bool[Array, "B T S"],
    *,
    scale: float,
    softcap: float | None,
) -> Float[Array, "B T N H"]:
    """The plain formula, all scores in memory at once: the reference that every kernel is held to."""
    batch, queries, heads, dim = q_BTNH.shape
    kv_heads = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(batch, queries, kv_heads, heads // kv_heads, dim)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(mask_BTS[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BSKH.dtype)
    out_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", weights, v_BSKH)
    return out_BTKGH.reshape(batch, queries, heads, dim).astype(q_BTNH.dtype)


def blockwise_attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    segment_ids_BT: Int[Array, "B T"],
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    block: int = BLOCK,
    kv_segment_ids_BS: Int[Array, "B S"] | None = None,
    first_query: Int[Array, ""] | None = None,
) -> Float[Array, "B T N H"]:
    """`masked_attention` a block of queries at a time, recomputed in the backward pass: a few blocks' scores in memory.

    The blocks of a group are scanned, since a compiler may otherwise keep all of them at once, over the keys that the
    group can see. Without a window, four groups do 5/8 of the full square's work, near the 1/2 that causality allows;
    with one, each block reads only the keys in its window, and the work, too, grows with T.

    Args:
      first_query: key of the first query, where the queries are one device's part of the sequence; each block then
        reads every key that any device's could. None: queries and keys are the same tokens.
      kv_segment_ids_BS: goes with `first_query`.
    """
    batch, length, heads, dim = q_BTNH.shape
    if kv_segment_ids_BS is None:
        kv_segment_ids_BS = segment_ids_BT
    num_keys, begin = k_BSKH.shape[1], 0 if first_query is None else first_query
    num_blocks = -(-length // block)
    padding = ((0, 0), (0, num_blocks * block - length))
    q_blocks = jnp.moveaxis(
        jnp.pad(q_BTNH, (*padding, (0, 0), (0, 0))).reshape(batch, num_blocks, block, heads, dim), 1, 0
    )
    # segment -1 has no keys: such a query sees nothing, and is cut off at the end
    padded_segments_BT = jnp.pad(segment_ids_BT, padding, constant_values=-1)
    segment_blocks = jnp.moveaxis(padded_segments_BT.reshape(batch, num_blocks, block), 1, 0)
    one_group = window is not None or first_query is not None
    per_group = num_blocks if one_group else -(-num_blocks // GROUPS)
    outs = []
    for first in range(0, num_blocks, per_group):
        last = min(first + per_group, num_blocks)
        keys = num_keys if one_group else min(last * block, num_keys)
        seen = keys if window is None else min(keys, block + window - 1)

        @jax.checkpoint
        def one_block(group_BKV: Any, one: Any, seen: int = seen) -> Array:
            q, query_segments, start = one
            first_key = jnp.clip(start + block - seen, 0, group_BKV[0].shape[1] - seen)
            k, v, key_segments = (jax.lax.dynamic_slice_in_dim(x, first_key, seen, axis=1) for x in group_BKV)
            offset_B = jnp.full((batch,), start - first_key)
            mask = visible(query_segments, key_segments, offset_B, window)
            return masked_attention(q, k, v, mask, scale=scale, softcap=softcap)

        group = (k_BSKH[:, :keys], v_BSKH[:, :keys], kv_segment_ids_BS[:, :keys])
        blocks = (q_blocks[first:last], segment_blocks[first:last], begin + jnp.arange(first, last) * block)
        outs.append(jax.lax.map(partial(one_block, group), blocks))
    return jnp.moveaxis(jnp.concatenate(outs), 0, 1).reshape(batch, -1, heads, dim)[:, :length]
