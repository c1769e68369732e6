"""From logits to the next token: greedy, temperature, top-k, top-p, min-p, repetition penalty. Pure functions.

The order is that of transformers: penalty, temperature, top-k, top-p, min-p. Every row draws from its own key, made
of (seed, request, token number), so that a request's text does not depend on the batch that it is decoded in.

Shapes: B rows, V vocabulary.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

REMOVED = -1e30  # logit of a token that cannot be drawn; finite, so that a softmax stays free of NaN


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is chosen.

    temperature: 0 takes the most likely token; above, logits are divided by it.
    top_k: only the k most likely tokens. top_p: the fewest whose probabilities reach p (Holtzman et al. 2020).
    min_p: only tokens with at least min_p times the probability of the most likely one (Nguyen et al. 2024).
    repetition_penalty: logits of tokens seen in prompt or text are divided if positive, else multiplied (Keskar et al.
    2019).
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature}: expected 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}: expected at least 1")
        for name in ("top_p", "min_p"):
            if (value := getattr(self, name)) is not None and not 0 < value <= 1:
                raise ValueError(f"{name}={value}: expected above 0 and at most 1")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty={self.repetition_penalty}: expected above 0 (1 changes nothing)")

    @property
    def penalises(self) -> bool:
        """Whether the tokens seen so far must be kept."""
        return self.repetition_penalty != 1.0


def row_keys(seed: int, request_B: Int[Array, "B"], number_B: Int[Array, "B"]) -> jax.Array:
    """One key a row, from the request and the number of its token alone."""

    def of_row(request: jax.Array, number: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), request), number)

    return jax.vmap(of_row)(request_B, number_B)


def penalised(logits_BV: Float[Array, "B V"], seen_BV: Bool[Array, "B V"], penalty: float) -> Float[Array, "B V"]:
    """Logits with those of seen tokens made less likely."""
    lowered = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return jnp.where(seen_BV, lowered, logits_BV)


def filtered(logits_BV: Float[Array, "B V"], config: SamplingConfig) -> Float[Array, "B V"]:
    """Logits after temperature, top-k, top-p and min-p: what is not allowed is `REMOVED`."""
    logits_BV = logits_BV.astype(jnp.float32) / config.temperature
    if config.top_k is not None:
        least = jax.lax.top_k(logits_BV, min(config.top_k, logits_BV.shape[-1]))[0][:, -1:]
        logits_BV = jnp.where(logits_BV < least, REMOVED, logits_BV)
    if config.top_p is not None:
        falling = -jnp.sort(-logits_BV, axis=-1)
        probs = jax.nn.softmax(falling, axis=-1)
        before = jnp.cumsum(probs, axis=-1) - probs  # mass of the tokens that are more likely than this one
        least = jnp.min(jnp.where(before < config.top_p, falling, jnp.inf), axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < least, REMOVED, logits_BV)
    if config.min_p is not None:
        least = jnp.max(logits_BV, axis=-1, keepdims=True) + jnp.log(config.min_p)
        logits_BV = jnp.where(logits_BV < least, REMOVED, logits_BV)
    return logits_BV


def sample(
    logits_BV: Float[Array, "B V"],
    config: SamplingConfig,
    request_B: Int[Array, "B"],
    number_B: Int[Array, "B"],
    seen_BV: Bool[Array, "B V"] | None = None,
) -> Int[Array, "B"]:
    """The next token of every row.

    Args:
      request_B: number of the request in each row: with the seed, all that its draws depend on.
      number_B: how many tokens the row has produced before this one.
      seen_BV: tokens of prompt and text so far; needed where the repetition penalty is not 1.
    """
    if config.penalises:
        if seen_BV is None:
            raise ValueError("a repetition penalty needs the tokens seen so far")
        logits_BV = penalised(logits_BV, seen_BV, config.repetition_penalty)
    if config.temperature == 0.0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    keys = row_keys(config.seed, request_B, number_B)
    draw = jax.vmap(lambda key, logits: jax.random.categorical(key, logits))
    return draw(keys, filtered(logits_BV, config)).astype(jnp.int32)
