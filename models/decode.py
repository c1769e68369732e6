"""Decoding with a key/value cache: prefill, a compiled loop of single-token steps, rows refilled as sequences end.

    decoder = Decoder(model)                                # weights one array a layer, in the compute dtype
    generate(decoder, [[1, 5, 7], [1, 9]], DecodeConfig(max_new_tokens=64, stop_ids=(2,)))

All shapes are fixed by (batch size, cache slots, prompt bucket), so a long generation compiles nothing new. The loop
runs `chunk` steps on the device between two looks from the host, which refills finished rows (continuous batching),
streams and searches for stop strings. Tokens come in and go out as ids; the text side is models.generation.

Shapes: B rows, T prompt tokens, S cache slots, C chunk, D embed, V vocabulary.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.cache import KVCache, init_cache
from models.sampling import SamplingConfig, sample
from models.transformer import CausalLM, unstacked

PREFILL_TOKENS = 512  # tokens of a prompt read at once: scores are PREFILL_TOKENS x S a head
SMALLEST_BUCKET = 16  # tokens; shorter prompts are padded to it
SLOT_MULTIPLE = 64  # cache slots are a multiple, so that nearby lengths share one compilation
STOP_WIDTH = 8  # most stop ids of one call

Reason = Literal["stop", "length", "context", "stop_string"]


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """What a generation asks for.

    max_new_tokens: for each prompt; fewer where the model's context ends. stop_ids: end a text and are not part of it.
    stop_strings: end a text before their first occurrence (text functions only). batch_size: rows decoded together.
    chunk: steps between two looks from the host; changes speed and how often text streams, never the text.
    """

    max_new_tokens: int = 128
    sampling: SamplingConfig = SamplingConfig()
    stop_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    batch_size: int = 16
    chunk: int = 16

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if len(self.stop_ids) > STOP_WIDTH:
            raise ValueError(f"{len(self.stop_ids)} stop ids given; at most {STOP_WIDTH} are supported")


@dataclass(frozen=True)
class Generation:
    """The new tokens of one prompt, without the stop id, and why they end."""

    ids: tuple[int, ...]
    reason: Reason


@dataclass(frozen=True)
class Event:
    """New tokens of one request. `reason` is None until its last event."""

    request: int
    ids: tuple[int, ...]
    reason: Reason | None


class Decoder:
    """A model's weights laid out for decoding: an array for every layer, matrices in the compute dtype.

    Makes one copy of the weights; drop the model itself where memory is short.
    """

    def __init__(self, model: CausalLM):
        flat = model if isinstance(model.layers, nnx.List) else unstacked(model)
        self.config = model.config
        self.graph, state = nnx.split(flat)
        dtype = model.config.dtype
        # matrices are used in the compute dtype only; norms and biases keep theirs
        self.state = jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, state)

    def empty_cache(self, rows: int, slots: int) -> KVCache:
        """A cache for this model."""
        return init_cache(self.config, rows, slots, stacked=False)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """What every row of the batch carries from step to step. A free row is done.

    token_B: the last token, not yet in the cache. number_B: tokens produced. limit_B: how many it may produce.
    request_B: which request it serves. seen_BV: tokens seen, [B, 1] where there is no repetition penalty.
    """

    cache: KVCache
    token_B: Any
    number_B: Any
    limit_B: Any
    request_B: Any
    done_B: Any
    seen_BV: Any


# ------------------------------------------------------------------------------------------------ compiled functions


@partial(jax.jit, static_argnames=("graph",), donate_argnames=("cache", "last_BD"))
def prefill(
    graph: Any, state: Any, cache: KVCache, last_BD: jax.Array, tokens_BT: jax.Array, segment_ids_BT: jax.Array
) -> tuple[KVCache, jax.Array]:
    """Read a piece of every prompt into the cache; `last_BD` becomes the hidden state of each row's latest token."""
    model = nnx.merge(graph, state)
    positions_BT = cache.length_B[:, None] + jnp.arange(tokens_BT.shape[1])
    hidden_BTD, cache = model(tokens_BT, segment_ids_BT, positions_BT, cache)
    count_B = jnp.sum(segment_ids_BT > 0, axis=1)
    newest_BD = jnp.take_along_axis(hidden_BTD, jnp.maximum(count_B - 1, 0)[:, None, None], axis=1)[:, 0]
    return cache, jnp.where((count_B > 0)[:, None], newest_BD, last_BD)


@partial(jax.jit, static_argnames=("graph", "sampling"))
def first_tokens(
    graph: Any, state: Any, last_BD: jax.Array, request_B: jax.Array, seen_BV: jax.Array, sampling: SamplingConfig
) -> jax.Array:
    """The first new token of every row."""
    logits_BV = nnx.merge(graph, state).logits(last_BD)
    return sample(logits_BV, sampling, request_B, jnp.zeros_like(request_B), seen_BV if sampling.penalises else None)


@partial(jax.jit, donate_argnames=("rows",))
def insert(rows: Rows, new: Rows, slot_R: jax.Array) -> Rows:
    """`rows` with the rows of `new` put in their slots; a slot past the end is left out."""
    return jax.tree.map(lambda old, fresh: old.at[slot_R].set(fresh, mode="drop"), rows, new)


@partial(jax.jit, static_argnames=("graph", "sampling", "chunk"), donate_argnames=("rows",))
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
        hidden_B1D, cache = model(
            rows.token_B[:, None], active_B[:, None].astype(jnp.int32), rows.cache.length_B[:, None], rows.cache
        )
        seen_BV = mark_seen(rows.seen_BV, rows.token_B) if sampling.penalises else rows.seen_BV
        logits_BV = model.logits(hidden_B1D[:, 0])
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


# --------------------------------------------------------------------------------------------------------- the host


def bucket(length: int, smallest: int = SMALLEST_BUCKET) -> int:
    """The least power of two times `smallest` that holds `length`: few shapes, few compilations."""
    size = smallest
    while size < length:
        size *= 2
    return size


def read_prompts(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    requests: Sequence[int],
    limits: Sequence[int],
    slots: int,
    config: DecodeConfig,
) -> Rows:
    """Prefill some prompts in a cache of their own and draw the first token of each."""
    rows, longest = len(prompts), max(len(prompt) for prompt in prompts)
    width = min(bucket(longest), PREFILL_TOKENS)
    padded = -(-longest // width) * width
    tokens, segments = np.zeros((rows, padded), np.int32), np.zeros((rows, padded), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)], segments[row, : len(prompt)] = prompt, 1
    cache = decoder.empty_cache(rows, slots)
    last_BD = jnp.zeros((rows, decoder.config.embed_dim), decoder.config.dtype)
    for start in range(0, padded, width):
        piece = slice(start, start + width)
        cache, last_BD = prefill(decoder.graph, decoder.state, cache, last_BD, tokens[:, piece], segments[:, piece])
    seen = np.zeros((rows, decoder.config.vocab_size if config.sampling.penalises else 1), bool)
    if config.sampling.penalises:
        for row, prompt in enumerate(prompts):
            seen[row, list(prompt)] = True
    request_B, seen_BV = jnp.asarray(requests, jnp.int32), jnp.asarray(seen)
    token_B = first_tokens(decoder.graph, decoder.state, last_BD, request_B, seen_BV, config.sampling)
    limit_B = jnp.asarray(limits, jnp.int32)
    done_B = jnp.any(token_B[:, None] == _stop_array(config), axis=1) | (limit_B <= 1)
    return Rows(cache, token_B, jnp.ones_like(token_B), limit_B, request_B, done_B, seen_BV)


def _stop_array(config: DecodeConfig) -> jax.Array:
    return jnp.asarray((*config.stop_ids, *[-2] * (STOP_WIDTH - len(config.stop_ids))), jnp.int32)


def limits_of(decoder: Decoder, prompts: Sequence[Sequence[int]], config: DecodeConfig) -> list[int]:
    """New tokens that each prompt may get; ValueError where a prompt is empty, too long, or has an unknown id."""
    context, vocabulary = decoder.config.embedding.max_positions, decoder.config.vocab_size
    limits = []
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(
                f"prompt {number} is empty: give at least one token (the BOS id starts a text from nothing)"
            )
        if context is not None and len(prompt) >= context:
            raise ValueError(
                f"prompt {number} has {len(prompt)} tokens, the model's context {context}: shorten the prompt"
            )
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            raise ValueError(
                f"prompt {number} has id {max(prompt)}, the vocabulary {vocabulary}: another model's tokenizer?"
            )
        limits.append(config.max_new_tokens if context is None else min(config.max_new_tokens, context - len(prompt)))
    return limits


def stream(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    config: DecodeConfig,
    finished: Callable[[int, list[int]], bool] | None = None,
) -> Iterator[Event]:
    """New tokens of every prompt as they come. Rows refill from the prompts that wait as soon as theirs end.

    Args:
      prompts: ids, with BOS where the model expects one. The number of a prompt is its request number.
      finished: asked with (request, ids so far) after each look; True ends the request ("stop_string").

    Raises:
      ValueError: a prompt is empty, longer than the context, or has an id outside of the vocabulary.
    """
    limits = limits_of(decoder, prompts, config)
    waiting = deque(range(len(prompts)))
    if not waiting:
        return
    size = min(config.batch_size, len(prompts))
    slots = max(len(prompt) + limit for prompt, limit in zip(prompts, limits))
    slots = -(-slots // SLOT_MULTIPLE) * SLOT_MULTIPLE
    owners: list[int | None] = [waiting.popleft() for _ in range(size)]
    texts: dict[int, list[int]] = {}
    rows = _fill(decoder, prompts, [o for o in owners if o is not None], limits, slots, config)
    fresh = np.asarray(rows.token_B)[:, None]
    places = list(range(size))
    while True:
        done = np.array(rows.done_B)
        for row, new in zip(places, fresh):
            if (owner := owners[row]) is None:
                continue
            event = _event(owner, new[new >= 0].tolist(), bool(done[row]), texts, limits, config, finished)
            if event.reason is not None:
                owners[row], done[row] = None, True
            yield event
        free = [row for row in range(size) if owners[row] is None]
        if len(free) == size and not waiting:
            return
        rows = replace(rows, done_B=jnp.asarray(done))
        if free and waiting:
            places = free[: len(waiting)]
            for row in places:
                owners[row] = waiting.popleft()
            new_rows = _fill(decoder, prompts, [owners[row] for row in places], limits, slots, config)
            extra = new_rows.token_B.shape[0] - len(places)
            rows = insert(rows, new_rows, jnp.asarray([*places, *[size] * extra], jnp.int32))
            fresh = np.asarray(new_rows.token_B)[: len(places), None]
            continue
        rows, out_BC = decode_chunk(
            decoder.graph, decoder.state, rows, _stop_array(config), config.sampling, config.chunk
        )
        fresh, places = np.asarray(out_BC), list(range(size))


def _fill(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    chosen: Sequence[Any],
    limits: list[int],
    slots: int,
    config: DecodeConfig,
) -> Rows:
    """Read the chosen prompts; their number is padded to a power of two with repetitions, to bound compilations."""
    count = bucket(len(chosen), 1) if len(chosen) < config.batch_size else len(chosen)
    padded = [*chosen, *[chosen[0]] * (count - len(chosen))]
    return read_prompts(decoder, [prompts[i] for i in padded], padded, [limits[i] for i in padded], slots, config)


def _event(
    owner: int,
    new: list[int],
    done: bool,
    texts: dict[int, list[int]],
    limits: list[int],
    config: DecodeConfig,
    finished: Callable[[int, list[int]], bool] | None,
) -> Event:
    """One request's news; keeps `texts` up to date."""
    reason: Reason | None = None
    if done:
        reason = "length" if limits[owner] == config.max_new_tokens else "context"
    if new and new[-1] in config.stop_ids:
        new, reason = new[:-1], "stop"
    ids = texts.setdefault(owner, [])
    ids.extend(new)
    if reason != "stop" and finished is not None and finished(owner, ids):
        reason = "stop_string"
    return Event(owner, tuple(new), reason)


def generate(
    model: CausalLM | Decoder,
    prompts: Sequence[Sequence[int]],
    config: DecodeConfig,
    finished: Callable[[int, list[int]], bool] | None = None,
) -> list[Generation]:
    """The new tokens of every prompt, in order. See `stream`; give a `Decoder` where several calls follow."""
    decoder = model if isinstance(model, Decoder) else Decoder(model)
    texts: dict[int, list[int]] = {number: [] for number in range(len(prompts))}
    reasons: dict[int, Reason] = {}
    for event in stream(decoder, prompts, config, finished):
        texts[event.request].extend(event.ids)
        if event.reason is not None:
            reasons[event.request] = event.reason
    return [Generation(tuple(texts[number]), reasons[number]) for number in range(len(prompts))]
