"""Attention over packed rows: one function, and the kernel that each backend runs it with.

A query sees a key when both belong to the same segment, the key is not after the query, and the key is inside the
window. Padding is segment 0 and sees padding, so no row of scores is ever empty and nothing becomes NaN.

Shapes: B batch, T queries, S keys, N query heads, K key/value heads, H head dim.
"""

from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from models.config import KernelName
from models.kernels import cudnn, splash
from models.kernels.blockwise import blockwise_attention
from models.kernels.dense import masked_attention, visible
from models.kernels.sharded import context_devices, over_context
from models.sharding import constrain


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
    return KernelChoice("blockwise", f"the fastest without a fused kernel, in the memory of a block{why_not}")


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
