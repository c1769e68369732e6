"""Attention over packed rows: one function, and the kernel that each backend runs it with.

A query sees a key when both belong to the same segment, the key is not after the query, and the key is inside the
window. Padding is segment 0 and sees padding, so no row of scores is ever empty and nothing becomes NaN.

Shapes: B batch, T queries, S keys, N query heads, K key/value heads, G = N / K, H head dim.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models.config import KernelName
from models.kernels import cudnn, splash

MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)  # finite, so that a fully masked row gives no NaN
DENSE_SCORES = (
    1024 * 1024
)  # scores a head up to which the dense kernel is faster than blocks (tests/bench/attention.py)
BLOCK = 512  # queries a block of the blockwise kernel; memory is BLOCK * S scores a head


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
    cached: bool = False  # keys come from a cache: queries do not begin at key 0


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
        "blockwise": "a cache has queries at different places in every row" if shape.cached else None,
        "splash": splash.obstacle(shape, backend),
        "cudnn_packed": cudnn.packed_obstacle(shape, backend, kind),
        "cudnn": cudnn.public_obstacle(shape, backend),
    }
    if kernel != "auto":
        if kernel not in obstacles:
            raise ValueError(f"attention kernel {kernel!r} is unknown; known: auto, {', '.join(obstacles)}")
        if obstacles[kernel]:
            raise ValueError(f"attention kernel {kernel!r} was asked for and cannot run: {obstacles[kernel]}")
        return KernelChoice(kernel, "asked for")
    return _automatic(shape, backend, obstacles)


def _automatic(shape: AttentionShape, backend: str, obstacles: dict[str, str | None]) -> KernelChoice:
    why_not = ""
    for name, wanted in (("splash", "tpu"), ("cudnn_packed", "gpu")):
        if backend == wanted and not shape.cached:
            if obstacles[name] is None:
                return KernelChoice(name, f"fused kernel of this {backend} that takes segments")
            why_not += f"; not {name}: {obstacles[name]}"
    if shape.cached:
        return KernelChoice("dense", "few queries on cached keys")
    if shape.queries * shape.keys <= DENSE_SCORES:
        return KernelChoice("dense", f"{shape.queries} x {shape.keys} scores a head are fastest whole{why_not}")
    return KernelChoice("blockwise", f"memory grows with the sequence, not with its square{why_not}")


def attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    *,
    segment_ids_BT: Int[Array, "B T"],
    kv_segment_ids_BS: Int[Array, "B S"] | None = None,
    offset_B: Int[Array, "B"] | None = None,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    kernel: KernelName = "auto",
) -> Float[Array, "B T N H"]:
    """Causal attention inside segments.

    Args:
      segment_ids_BT: segment of every query (and key, without a cache); 0 is padding.
      kv_segment_ids_BS: with a cache, segment of every slot.
      offset_B: with a cache, slot of each row's first query. None: queries and keys are the same tokens.
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
        cached=offset_B is not None,
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
    if name == "blockwise":
        return blockwise_attention(q_BTNH, k_BSKH, v_BSKH, segment_ids_BT, **common)
    if kv_segment_ids_BS is None:
        kv_segment_ids_BS = segment_ids_BT
    mask = visible(segment_ids_BT, kv_segment_ids_BS, offset_B, window)
    return masked_attention(q_BTNH, k_BSKH, v_BSKH, mask, scale=scale, softcap=softcap)


def visible(
    segment_ids_BT: Int[Array, "B T"],
    kv_segment_ids_BS: Int[Array, "B S"],
    offset_B: Int[Array, "B"] | None,
    window: int | None,
    first_query: int = 0,
    first_key: int = 0,
) -> Bool[Array, "B T S"]:
    """Which keys each query sees. Queries begin at slot `offset_B` (or `first_query`), keys at slot `first_key`."""
    queries = jnp.arange(segment_ids_BT.shape[1])[None, :] + (first_query if offset_B is None else offset_B[:, None])
    keys = jnp.arange(kv_segment_ids_BS.shape[1]) + first_key
    distance = queries[:, :, None] - keys[None, None, :]
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
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    segment_ids_BT: Int[Array, "B T"],
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    block: int = BLOCK,
) -> Float[Array, "B T N H"]:
    """`masked_attention` a block of queries at a time, each over the keys that it can see and no others.

    A block is recomputed in the backward pass, so that memory holds one block's scores. Keys after the block or before
    its window are never read: with a window the work, too, grows with T.
    """
    outs = []
    for start in range(0, q_BTNH.shape[1], block):
        end = min(start + block, q_BTNH.shape[1])
        first_key = 0 if window is None else max(0, start - window + 1)

        @jax.checkpoint
        def one_block(q, k, v, query_segments, key_segments, start=start, first_key=first_key):
            mask = visible(query_segments, key_segments, None, window, start, first_key)
            return masked_attention(q, k, v, mask, scale=scale, softcap=softcap)

        keys = slice(first_key, end)
        outs.append(
            one_block(
                q_BTNH[:, start:end],
                k_BTKH[:, keys],
                v_BTKH[:, keys],
                segment_ids_BT[:, start:end],
                segment_ids_BT[:, keys],
            )
        )
    return jnp.concatenate(outs, axis=1)
