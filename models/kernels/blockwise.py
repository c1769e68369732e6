"""Causal attention a block of queries at a time, in plain JAX with a gradient of its own: where no fused kernel runs.

The forward pass keeps one number a query, the log-sum-exp of its scores; from it the backward pass makes a block's
weights again with one product and one exponential (FlashAttention, Dao et al. 2022, arXiv:2205.14135). Only a block's
scores exist at a time, and every product is written so that what is transposed for it is small: never the scores.

Shapes: n blocks, C queries of a block, B batch, T queries, S keys, N query heads, K key/value heads, G = N / K,
R = G C, H head dim.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from models.kernels.dense import MASKED, visible

SMALLEST, LARGEST = 64, 128  # queries a block, so that its scores stay in a core's cache; 512 took 1.4 times as long
GROUPS = 4  # parts of the sequence, each over the keys up to its end: 5/8 of the square; 8 compile twice as long


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is known of a call while it is traced."""

    scale: float
    window: int | None
    softcap: float | None
    block: int
    groups: int


def blockwise_attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    segment_ids_BT: Int[Array, "B T"],
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    block: int | None = None,
    kv_segment_ids_BS: Int[Array, "B S"] | None = None,
    first_query: Int[Array, ""] | None = None,
) -> Float[Array, "B T N H"]:
    """`masked_attention` inside segments, causal; memory is a block's scores, B N C S, and grows with S alone.

    Without a window, each of `GROUPS` parts reads the keys up to its end; with one, each block reads only the keys in
    its window, and the work, too, grows with T.

    Args:
      block: queries a block; None: an eighth of them, within SMALLEST and LARGEST.
      first_query: key of the first query, where the queries are one device's part of the sequence; each block then
        reads every key that any device's could. None: queries and keys are the same tokens.
      kv_segment_ids_BS: goes with `first_query`.
    """
    batch, length, heads, dim = q_BTNH.shape
    kv_heads = k_BSKH.shape[2]
    size = block or min(max(length // 8, SMALLEST), LARGEST, length)
    count = -(-length // size)
    padding = ((0, 0), (0, count * size - length))
    q_BnCKGH = jnp.pad(q_BTNH, (*padding, (0, 0), (0, 0))).reshape(batch, count, size, kv_heads, -1, dim)
    q_nBKRH = q_BnCKGH.transpose(1, 0, 3, 4, 2, 5).reshape(count, batch, kv_heads, -1, dim)
    # segment -1 has no keys: such a query sees nothing, and is cut off at the end
    segments_BnC = jnp.pad(segment_ids_BT, padding, constant_values=-1).reshape(batch, count, size)
    places_n = (0 if first_query is None else first_query) + size * jnp.arange(count)
    one_group = window is not None or first_query is not None
    plan = Plan(scale=scale, window=window, softcap=softcap, block=size, groups=1 if one_group else GROUPS)
    out_nBKRH = _attend(
        plan,
        q_nBKRH,
        *(x_BSKH.transpose(0, 2, 1, 3) for x_BSKH in (k_BSKH, v_BSKH)),
        (places_n, segments_BnC.swapaxes(0, 1), segment_ids_BT if kv_segment_ids_BS is None else kv_segment_ids_BS),
    )
    out_nBKGCH = out_nBKRH.reshape(count, batch, kv_heads, -1, size, dim)
    return out_nBKGCH.transpose(1, 0, 4, 2, 3, 5).reshape(batch, count * size, heads, dim)[:, :length]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: Plan, q_nBKRH: Array, k_BKSH: Array, v_BKSH: Array, where: Any) -> Array:
    """where: place of each block's first query, segments of the queries by block, segments of the keys."""
    return _forward(plan, q_nBKRH, k_BKSH, v_BKSH, where)[0]


def _forward(plan: Plan, q_nBKRH: Array, k_BKSH: Array, v_BKSH: Array, where: Any) -> tuple[Array, Any]:
    """The output, and what the backward pass reads."""
    k_BKHS, (places_n, segments_nBC, of_keys_BS) = k_BKSH.swapaxes(2, 3), where
    outs, log_sums = [], []
    for blocks, keys in _groups(plan, len(places_n), k_BKSH.shape[2]):

        def one(keys: int, block: Any) -> tuple[Array, Array]:
            q_BKRH, place, segments_BC = block
            near, first = _near(plan, place, keys)
            mask_BCS = _mask(plan, place, first, segments_BC, near(of_keys_BS, 1))
            scores_BKGCS, _ = _scores(plan, q_BKRH, near(k_BKHS, 3), mask_BCS)
            top_BKGC1 = jnp.max(scores_BKGCS, axis=-1, keepdims=True)
            weights_BKGCS = jnp.exp(scores_BKGCS - top_BKGC1)
            sum_BKGC1 = jnp.sum(weights_BKGCS, axis=-1, keepdims=True)
            weights_BKRS = weights_BKGCS.reshape(*q_BKRH.shape[:3], -1).astype(v_BKSH.dtype)
            out_BKRH = jnp.matmul(weights_BKRS, near(v_BKSH, 2), preferred_element_type=jnp.float32)
            out_BKRH /= sum_BKGC1.reshape(*out_BKRH.shape[:3], 1)
            return out_BKRH.astype(q_BKRH.dtype), (top_BKGC1 + jnp.log(sum_BKGC1))[..., 0]

        given = jax.tree.map(lambda x, blocks=blocks: x[blocks], (q_nBKRH, places_n, segments_nBC))
        out, log_sum = jax.lax.map(partial(one, keys), given)
        outs.append(out)
        log_sums.append(log_sum)
    out_nBKRH, log_sum_nBKGC = jnp.concatenate(outs), jnp.concatenate(log_sums)
    return out_nBKRH, (q_nBKRH, k_BKSH, v_BKSH, where, out_nBKRH, log_sum_nBKGC)


def _backward(plan: Plan, kept: Any, gradient_nBKRH: Array) -> tuple[Array, Array, Array, None]:
    """Gradients of q, k and v; `d` stands before the name of what a gradient is of."""
    q_nBKRH, k_BKSH, v_BKSH, (places_n, segments_nBC, of_keys_BS), out_nBKRH, log_sum_nBKGC = kept
    k_BKHS, v_BKHS = k_BKSH.swapaxes(2, 3), v_BKSH.swapaxes(2, 3)
    # sum over keys of weight x d weight, of every query: what a softmax takes from all its gradients
    shared_nBKR = jnp.sum(gradient_nBKRH.astype(jnp.float32) * out_nBKRH.astype(jnp.float32), axis=-1)
    shared_nBKGC = shared_nBKR.reshape(log_sum_nBKGC.shape)
    dqs, dk_BKHS, dv_BKHS = [], jnp.zeros(k_BKHS.shape, jnp.float32), jnp.zeros(v_BKHS.shape, jnp.float32)
    for blocks, keys in _groups(plan, len(places_n), k_BKSH.shape[2]):

        def one(keys: int, sums: Any, block: Any) -> tuple[Any, Array]:
            (q_BKRH, place, segments_BC), (d_BKRH, shared_BKGC, log_sum_BKGC) = block
            near, first = _near(plan, place, keys)
            mask_BCS = _mask(plan, place, first, segments_BC, near(of_keys_BS, 1))
            scores_BKGCS, slope_BKGCS = _scores(plan, q_BKRH, near(k_BKHS, 3), mask_BCS)
            weights_BKGCS = jnp.exp(scores_BKGCS - log_sum_BKGC[..., None])
            dweights_BKRS = jnp.matmul(d_BKRH, near(v_BKHS, 3), preferred_element_type=jnp.float32)
            dscores_BKGCS = weights_BKGCS * (dweights_BKRS.reshape(scores_BKGCS.shape) - shared_BKGC[..., None])
            dscores_BKGCS *= plan.scale if slope_BKGCS is None else plan.scale * slope_BKGCS
            weights_BKRS, dscores_BKRS = (
                x.reshape(dweights_BKRS.shape).astype(q_BKRH.dtype) for x in (weights_BKGCS, dscores_BKGCS)
            )
            product = partial(jnp.matmul, preferred_element_type=jnp.float32)
            parts = (product(q_BKRH.swapaxes(2, 3), dscores_BKRS), product(d_BKRH.swapaxes(2, 3), weights_BKRS))
            sums = tuple(_added(whole, part, first) for whole, part in zip(sums, parts))
            return sums, product(dscores_BKRS, near(k_BKSH, 2)).astype(q_BKRH.dtype)

        given = ((q_nBKRH, places_n, segments_nBC), (gradient_nBKRH, shared_nBKGC, log_sum_nBKGC))
        given = jax.tree.map(lambda x, blocks=blocks: x[blocks], given)
        sums, dq_nBKRH = jax.lax.scan(partial(one, keys), (dk_BKHS[..., :keys], dv_BKHS[..., :keys]), given)
        dk_BKHS, dv_BKHS = (whole.at[..., :keys].set(part) for whole, part in zip((dk_BKHS, dv_BKHS), sums))
        dqs.append(dq_nBKRH)
    dk_BKSH, dv_BKSH = (x.swapaxes(2, 3).astype(k_BKSH.dtype) for x in (dk_BKHS, dv_BKHS))
    return jnp.concatenate(dqs), dk_BKSH, dv_BKSH, None


_attend.defvjp(_forward, _backward)


def _groups(plan: Plan, count: int, keys: int) -> list[tuple[slice, int]]:
    """(blocks, keys up to the end of the last of them) of each group."""
    size = -(-count // plan.groups)
    if plan.groups == 1:
        return [(slice(0, count), keys)]
    return [(slice(first, first + size), min((first + size) * plan.block, keys)) for first in range(0, count, size)]


def _near(plan: Plan, place: Array, keys: int) -> tuple[Any, Any]:
    """(cuts an array to the keys that a block reads, along an axis; the first of those keys)."""
    seen = keys if plan.window is None else min(keys, plan.block + plan.window - 1)
    if seen == keys:
        return (lambda x, axis: jax.lax.slice_in_dim(x, 0, keys, axis=axis)), 0
    first = jnp.clip(place + plan.block - seen, 0, keys - seen)
    return (lambda x, axis: jax.lax.dynamic_slice_in_dim(x, first, seen, axis=axis)), first


def _added(whole_BKHS: Array, part_BKHS: Array, first: Any) -> Array:
    """The sum with a block's part in its place."""
    if whole_BKHS.shape == part_BKHS.shape:
        return whole_BKHS + part_BKHS
    before = jax.lax.dynamic_slice_in_dim(whole_BKHS, first, part_BKHS.shape[3], axis=3)
    return jax.lax.dynamic_update_slice_in_dim(whole_BKHS, before + part_BKHS, first, axis=3)


def _mask(plan: Plan, place: Array, first: Any, segments_BC: Array, of_keys_BS: Array) -> Array:
    return visible(segments_BC, of_keys_BS, jnp.full((len(segments_BC),), place - first), plan.window)


def _scores(plan: Plan, q_BKRH: Array, k_BKHS: Array, mask_BCS: Array) -> tuple[Array, Array | None]:
    """(masked scores [B, K, G, C, S] in float32, the slope of the soft cap there)."""
    batch, kv_heads, _, _ = q_BKRH.shape
    scores = jnp.matmul(q_BKRH, k_BKHS, preferred_element_type=jnp.float32) * plan.scale
    scores = scores.reshape(batch, kv_heads, -1, *mask_BCS.shape[1:])
    slope = None
    if plan.softcap is not None:
        tanh = jnp.tanh(scores / plan.softcap)
        scores, slope = plan.softcap * tanh, 1 - jnp.square(tanh)
    return jnp.where(mask_BCS[:, None, None], scores, MASKED), slope
