"""Rows of a batch that is decoded, and the compiled functions that advance them.

All shapes are fixed by (batch size, cache slots, prompt bucket), so a long generation compiles nothing new.

Shapes: B rows, R new rows, T prompt tokens, S cache slots, C chunk, D embed, E hidden, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.adapters import count_adapters
from models.cache import KVCache, init_cache
from models.quantize import Quantized
from models.rows import RowContext
from models.sampling import SamplingConfig, sample
from models.transformer import CausalLM, unstacked

PREFILL_TOKENS = 512  # tokens of a prompt read at once: scores are PREFILL_TOKENS x S a head
SMALLEST_BUCKET = 16  # tokens; shorter prompts are padded to it


class Decoder:
    """A model's weights laid out for decoding: an array for every layer, matrices in the compute dtype.

    Makes one copy of the weights; drop the model itself where memory is short.
    """

    def __init__(self, model: CausalLM):
        flat = model if isinstance(model.layers, nnx.List) else unstacked(model)
        self.config, self.hidden_dim, self.num_adapters = model.config, model.hidden_dim, count_adapters(model)
        self.graph, state = nnx.split(flat)
        dtype = model.config.dtype

        def used(leaf: nnx.Variable) -> nnx.Variable:
            # matrices are used in the compute dtype only; norms and biases keep theirs, and quantised ones are bytes
            values = leaf.get_value()
            return leaf.replace(values.astype(dtype)) if values.ndim > 1 and not isinstance(leaf, Quantized) else leaf

        self.state = jax.tree.map(used, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))

    def empty_cache(self, rows: int, slots: int) -> KVCache:
        """A cache for this model."""
        return init_cache(self.config, rows, slots, stacked=False)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """What every row of the batch carries from step to step. A free row is done.

    token_B: the last token, not yet in the cache. number_B: tokens produced. limit_B: how many it may produce.
    request_B: which request it serves. adapter_B: which adapter acts on it, -1 for none. seen_BV: tokens seen, [B, 1]
    where there is no repetition penalty.
    """

    cache: KVCache
    token_B: Any
    number_B: Any
    limit_B: Any
    request_B: Any
    adapter_B: Any
    done_B: Any
    seen_BV: Any


# ------------------------------------------------------------------------------------------------ compiled functions


@partial(jax.jit, static_argnames=("graph",), donate_argnames=("cache", "last_BE"))
def prefill(
    graph: Any,
    state: Any,
    cache: KVCache,
    last_BE: jax.Array,
    tokens_BT: jax.Array,
    segment_ids_BT: jax.Array,
    adapter_B: jax.Array,
) -> tuple[KVCache, jax.Array]:
    """Read a piece of every prompt into the cache; `last_BE` becomes the hidden state of each row's latest token."""
    model = nnx.merge(graph, state)
    positions_BT = cache.length_B[:, None] + jnp.arange(tokens_BT.shape[1])
    rows = RowContext(adapter_ids_B=adapter_B)
    hidden_BTE, cache = model(tokens_BT, segment_ids_BT, positions_BT, cache, rows)
    count_B = jnp.sum(segment_ids_BT > 0, axis=1)
    newest_BE = jnp.take_along_axis(hidden_BTE, jnp.maximum(count_B - 1, 0)[:, None, None], axis=1)[:, 0]
    return cache, jnp.where((count_B > 0)[:, None], newest_BE, last_BE)


@partial(jax.jit, static_argnames=("graph", "sampling"))
def first_tokens(
    graph: Any, state: Any, last_BE: jax.Array, request_B: jax.Array, seen_BV: jax.Array, sampling: SamplingConfig
) -> jax.Array:
    """The first new token of every row."""
    logits_BV = nnx.merge(graph, state).logits(last_BE)
    return sample(logits_BV, sampling, request_B, jnp.zeros_like(request_B), seen_BV if sampling.penalises else None)


@partial(jax.jit, donate_argnames=("rows",))
def insert(rows: Rows, new: Rows, slot_R: jax.Array) -> Rows:
    """`rows` with the rows of `new` put in their slots; a slot past the end is left out."""
    return jax.tree.map(lambda old, fresh: old.at[slot_R].set(fresh, mode="drop"), rows, new)


@cache
def few_row_options() -> dict[str, str] | None:
    """Compiler options for products of a few rows, the decoding step's.

    On a CPU, XLA's YNNPACK library (jax 0.10) multiplies 16 rows at 0.65 of the rate that Eigen reaches, while scoring
    is 15 % faster with it: only the step does without. A compiler that does not know the option keeps its defaults.
    """
    if jax.default_backend() != "cpu":
        return None
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except Exception:  # what an unknown option raises is not part of jax's interface
        return None
    return options


@cache
def compiled_chunk() -> Any:
    """`decode_chunk`, compiled with the options of this backend; `rows` is donated."""
    static, donated = ("graph", "sampling", "chunk"), ("rows",)
    options = few_row_options()
    return jax.jit(decode_chunk, static_argnames=static, donate_argnames=donated, compiler_options=options)


def decode_chunk(
    graph: Any, state: Any, rows: Rows, stop_ids_K: jax.Array, sampling: SamplingConfig, chunk: int
) -> tuple[Rows, jax.Array]:
    """At most `chunk` steps of every row that is not done. Returns the rows and the new tokens [B, C], -1 where none.

    The stop id itself is written out, so that the host sees why a row ended.
    """
    model = nnx.merge(graph, state)

    def more(carry: tuple[jax.Array, Rows, jax.Array]) -> jax.Array:
        return (carry[0] < chunk) & jnp.any(~carry[1].done_B)

    def step(carry: tuple[jax.Array, Rows, jax.Array]) -> tuple[jax.Array, Rows, jax.Array]:
        place, rows, out_BC = carry
        active_B = ~rows.done_B
        context = RowContext(adapter_ids_B=rows.adapter_B)
        hidden_B1E, cache = model(
            rows.token_B[:, None],
            active_B[:, None].astype(jnp.int32),
            rows.cache.length_B[:, None],
            rows.cache,
            context,
        )
        seen_BV = mark_seen(rows.seen_BV, rows.token_B) if sampling.penalises else rows.seen_BV
        logits_BV = model.logits(hidden_B1E[:, 0])
        token_B = sample(logits_BV, sampling, rows.request_B, rows.number_B, seen_BV if sampling.penalises else None)
        token_B = jnp.where(active_B, token_B, rows.token_B)
        number_B = rows.number_B + active_B
        ended_B = jnp.any(token_B[:, None] == stop_ids_K, axis=1) | (number_B >= rows.limit_B)
        out_BC = out_BC.at[:, place].set(jnp.where(active_B, token_B, -1))
        following = replace(
            rows, cache=cache, token_B=token_B, number_B=number_B, done_B=rows.done_B | ended_B, seen_BV=seen_BV
        )
        return place + 1, following, out_BC

    out_BC = jnp.full((rows.token_B.shape[0], chunk), -1, jnp.int32)
    _, rows, out_BC = jax.lax.while_loop(more, step, (jnp.int32(0), rows, out_BC))
    return rows, out_BC


def mark_seen(seen_BV: jax.Array, token_B: jax.Array) -> jax.Array:
    """The seen tokens with one more for each row."""
    return seen_BV.at[jnp.arange(token_B.shape[0]), token_B].set(True)


# ---------------------------------------------------------------------------------------------------------- new rows


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt that waits: its number, its ids, the new tokens it may get, the adapter that acts on it."""

    number: int
    prompt: Sequence[int]
    limit: int
    adapter: int


def bucket(length: int, smallest: int = SMALLEST_BUCKET) -> int:
    """The least power of two times `smallest` that holds `length`: few shapes, few compilations."""
    size = smallest
    while size < length:
        size *= 2
    return size


def read_prompts(
    decoder: Decoder, requests: Sequence[Request], slots: int, sampling: SamplingConfig, stop_ids_K: jax.Array
) -> Rows:
    """Prefill some prompts in a cache of their own and draw the first token of each."""
    count, longest = len(requests), max(len(request.prompt) for request in requests)
    width = min(bucket(longest), PREFILL_TOKENS)
    padded = -(-longest // width) * width
    tokens, segments = np.zeros((count, padded), np.int32), np.zeros((count, padded), np.int32)
    seen = np.zeros((count, decoder.config.vocab_size if sampling.penalises else 1), bool)
    for row, request in enumerate(requests):
        length = len(request.prompt)
        tokens[row, :length], segments[row, :length] = request.prompt, 1
        if sampling.penalises:
            seen[row, list(request.prompt)] = True
    number_B, limit_B, adapter_B = (
        jnp.asarray(values, jnp.int32) for values in zip(*((r.number, r.limit, r.adapter) for r in requests))
    )
    cache = decoder.empty_cache(count, slots)
    last_BE = jnp.zeros((count, decoder.hidden_dim), decoder.config.dtype)
    for start in range(0, padded, width):
        piece = slice(start, start + width)
        cache, last_BE = prefill(
            decoder.graph, decoder.state, cache, last_BE, tokens[:, piece], segments[:, piece], adapter_B
        )
    seen_BV = jnp.asarray(seen)
    token_B = first_tokens(decoder.graph, decoder.state, last_BE, number_B, seen_BV, sampling)
    done_B = jnp.any(token_B[:, None] == stop_ids_K, axis=1) | (limit_B <= 1)
    return Rows(cache, token_B, jnp.ones_like(token_B), limit_B, number_B, adapter_B, done_B, seen_BV)
