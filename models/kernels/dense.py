"""Attention by the plain formula, all scores in memory at once: the reference that every kernel is held to.

Shapes: B batch, T queries, S keys, N query heads, K key/value heads, G = N / K, H head dim.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)  # finite, so that a fully masked row gives no NaN


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
    """softmax(scale q k^T) v over the keys of the mask, in q's dtype; scores and softmax are float32."""
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
