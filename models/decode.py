"""Decoding with a key/value cache: prefill, a compiled loop of single-token steps, rows refilled as sequences end.

    decoder = Decoder(model)                                # weights one array a layer, in the compute dtype
    generate(decoder, [[1, 5, 7], [1, 9]], DecodeConfig(max_new_tokens=64, stop_ids=(2,)))

The device runs `chunk` steps between two looks from the host, which refills finished rows (continuous batching),
streams and searches for stop strings. Tokens come in and go out as ids; the text side is models.generation, the
compiled functions are in models.decode_rows.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import jax.numpy as jnp
import numpy as np

from models.adapters import check_numbers
from models.decode_rows import Decoder, Request, Rows, bucket, compiled_chunk, insert, read_prompts
from models.sampling import SamplingConfig
from models.scoring import check_ids
from models.transformer import CausalLM

SLOT_MULTIPLE = 32  # cache slots are a multiple, so that nearby lengths share one compilation
STOP_WIDTH = 8  # most stop ids of one call
NO_TOKEN = -2  # fills up the stop ids: no token is that

Reason = Literal["stop", "length", "context", "stop_string"]
Finished = Callable[[int, list[int]], bool]


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


def generate(
    model: CausalLM | Decoder,
    prompts: Sequence[Sequence[int]],
    config: DecodeConfig,
    finished: Finished | None = None,
    *,
    adapters: Sequence[int] | None = None,
) -> list[Generation]:
    """The new tokens of every prompt, in order. See `stream`; give a `Decoder` where several calls follow."""
    decoder = model if isinstance(model, Decoder) else Decoder(model)
    texts: dict[int, list[int]] = {number: [] for number in range(len(prompts))}
    reasons: dict[int, Reason] = {}
    for event in stream(decoder, prompts, config, finished, adapters=adapters):
        texts[event.request].extend(event.ids)
        if event.reason is not None:
            reasons[event.request] = event.reason
    return [Generation(tuple(texts[number]), reasons[number]) for number in range(len(prompts))]


def stream(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    config: DecodeConfig,
    finished: Finished | None = None,
    *,
    adapters: Sequence[int] | None = None,
) -> Iterator[Event]:
    """New tokens of every prompt as they come. Rows refill from the prompts that wait as soon as theirs end.

    Args:
      prompts: ids, with BOS where the model expects one. The number of a prompt is its request number.
      finished: asked with (request, ids so far) after each look; True ends the request ("stop_string").
      adapters: of a model that has several, the number of the one that acts on each prompt, -1 for the base alone.

    Raises:
      ValueError: a prompt is empty, longer than the context, or has an id outside of the vocabulary.
    """
    requests = make_requests(decoder, prompts, config, adapters)
    if requests:
        yield from Batch(decoder, requests, config, finished).events()


def make_requests(
    decoder: Decoder, prompts: Sequence[Sequence[int]], config: DecodeConfig, adapters: Sequence[int] | None = None
) -> list[Request]:
    """The prompts with the new tokens that each may get; errors as `stream`."""
    context, vocabulary = decoder.config.embedding.max_positions, decoder.config.vocab_size
    check_numbers(adapters or (), decoder.num_adapters)
    requests = []
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(
                f"prompt {number} is empty: give at least one token (the BOS id starts a text from nothing)"
            )
        if context is not None and len(prompt) >= context:
            raise ValueError(
                f"prompt {number} has {len(prompt)} tokens, the model's context {context}: shorten the prompt"
            )
        check_ids(prompt, vocabulary, f"prompt {number}")
        limit = config.max_new_tokens if context is None else min(config.max_new_tokens, context - len(prompt))
        adapter = 0 if adapters is None else adapters[number]
        requests.append(Request(number=number, prompt=prompt, limit=limit, adapter=adapter))
    return requests


class Batch:
    """The rows on the device, who owns each of them, and the requests that wait for one."""

    def __init__(self, decoder: Decoder, requests: Sequence[Request], config: DecodeConfig, finished: Finished | None):
        self.decoder, self.config, self.finished = decoder, config, finished
        self.waiting = deque(requests)
        slots = max(len(request.prompt) + request.limit for request in requests)
        self.slots = -(-slots // SLOT_MULTIPLE) * SLOT_MULTIPLE
        padding = [NO_TOKEN] * (STOP_WIDTH - len(config.stop_ids))
        self.stop_ids_K = jnp.asarray([*config.stop_ids, *padding], jnp.int32)
        self.owners: list[Request | None] = [None] * min(config.batch_size, len(requests))
        self.ids: dict[int, list[int]] = {request.number: [] for request in requests}

    def events(self) -> Iterator[Event]:
        """Refill, decode, look; until nobody owns a row and nobody waits."""
        rows: Rows | None = None
        while True:
            free = [place for place, owner in enumerate(self.owners) if owner is None]
            if free and self.waiting:
                places = free[: len(self.waiting)]
                rows, news = self.fill(rows, places)
            elif len(free) == len(self.owners) or rows is None:
                return
            else:
                decoder, config = self.decoder, self.config
                rows, out_BC = compiled_chunk()(
                    decoder.graph, decoder.state, rows, self.stop_ids_K, config.sampling, config.chunk
                )
                places, news = list(range(len(self.owners))), np.asarray(out_BC)
            done = np.array(rows.done_B)
            for place, new in zip(places, news):
                if (owner := self.owners[place]) is not None:
                    event = self.event(owner, new[new >= 0].tolist(), bool(done[place]))
                    if event.reason is not None:
                        self.owners[place], done[place] = None, True
                    yield event
            rows = replace(rows, done_B=jnp.asarray(done))

    def fill(self, rows: Rows | None, places: list[int]) -> tuple[Rows, np.ndarray]:
        """The rows with waiting requests read into these places, and the first new token [R, 1] of each.

        Their number is padded to a power of two with repetitions, to bound compilations.
        """
        requests = [self.waiting.popleft() for _ in places]
        for place, request in zip(places, requests):
            self.owners[place] = request
        size = len(self.owners)
        count = size if rows is None else min(size, bucket(len(requests), 1))
        padded = [*requests, *[requests[0]] * (count - len(requests))]
        new = read_prompts(self.decoder, padded, self.slots, self.config.sampling, self.stop_ids_K)
        first = np.asarray(new.token_B)[: len(places), None]
        if rows is None:
            return new, first
        slot_R = jnp.asarray([*places, *[size] * (count - len(places))], jnp.int32)
        return insert(rows, new, slot_R), first

    def event(self, owner: Request, new: list[int], done: bool) -> Event:
        """One request's news; keeps its ids up to date."""
        config = self.config
        reason: Reason | None = None
        if done:
            reason = "length" if owner.limit == config.max_new_tokens else "context"
        if new and new[-1] in config.stop_ids:
            new, reason = new[:-1], "stop"
        ids = self.ids[owner.number]
        ids.extend(new)
        if reason != "stop" and self.finished is not None and self.finished(owner.number, ids):
            reason = "stop_string"
        return Event(owner.number, tuple(new), reason)
