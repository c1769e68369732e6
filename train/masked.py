"""Masked language modelling (Devlin et al. 2019): some tokens are hidden, the model says what they were.

    Config(model=EncoderConfig(...), objective=MaskedLM(), ...)

What is hidden is drawn from a key of (seed, step, row), so that mesh, accumulation and resuming change nothing.
The loader's batches are taken as they are: `inputs` is the text, its shifted `targets` are not looked at. BOS is never
hidden. Held-out figures are estimates of the nats of every token, from the hidden ones: bits per byte that compare with
other masked models and with a unigram model, not with a causal one.

Shapes: B rows, T tokens, M hidden tokens of a row at the most, D embed, V vocabulary.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models.encoder import EncoderLM
from models.lora import LoRA
from models.rows import DROPOUT_KEYS
from train.loss import token_losses
from train.step import TrainConfig

Batch = Mapping[str, Array]
_HELD_OUT = 0x9E3779B9  # what separates the keys of held-out rows from those of training


@dataclass(frozen=True, kw_only=True)
class MaskedLM:
    """share: of the tokens are predicted. Of those, `masked` become the mask, `replaced` any token, the rest stay."""

    draws = True
    share: float = 0.15
    masked: float = 0.8
    replaced: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.share < 1 or min(self.masked, self.replaced) < 0 or self.masked + self.replaced > 1:
            raise ValueError(f"{self}: expected 0 < share < 1, and masked + replaced at most 1")

    def make(self, options: TrainConfig) -> Any:
        """(model, batch) -> (sum to differentiate, sums to report)."""
        if options.z_loss:
            raise ValueError(f"train.z_loss={options.z_loss} is of objective=NextToken(): set 0 for MaskedLM()")
        return partial(masked_objective, settings=self, vocab_chunk=options.vocab_chunk)

    def nats(self, options: TrainConfig) -> Any:
        """(model, batch) -> an estimate of the nats of all its tokens."""
        return partial(masked_nats, settings=self, vocab_chunk=options.vocab_chunk)

    def check(self, lora: LoRA | None, *, paired: bool, adapters: tuple[str, ...] = ()) -> None:
        """ValueError where the data or the adapters are not for this objective."""
        if paired:
            raise ValueError("the data are preferences (chosen, rejected): set objective=Preference()")
        if lora is not None or adapters:
            raise ValueError("objective=MaskedLM() trains whole encoders: set lora=None and loader.adapters=()")


def masked_objective(
    model: EncoderLM, batch: Batch, *, settings: MaskedLM, vocab_chunk: int | None = None
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Sum of the nats of the hidden tokens; `loss` and `weight` (how many there are) to report."""
    # training rows bring the keys of their step; held-out rows bring none
    keys_B2 = batch[DROPOUT_KEYS] if DROPOUT_KEYS in batch else row_content_keys(batch["inputs"])
    nll_BM, hidden_BM = hidden_losses(model, batch, keys_B2, settings, vocab_chunk)
    nll = jnp.sum(jnp.where(hidden_BM, nll_BM, 0.0))
    return nll, {"loss": nll, "weight": jnp.sum(hidden_BM).astype(jnp.float32)}


def hidden_losses(
    model: EncoderLM, batch: Batch, keys_B2: Array, settings: MaskedLM, vocab_chunk: int | None
) -> tuple[Float[Array, "B M"], Bool[Array, "B M"]]:
    """Nats of the tokens that a row hides, and which of the M places are real: logits are made for them alone."""
    tokens_BT = batch["inputs"]
    maskable_BT = (batch["segment_ids"] > 0) & (batch["positions"] > 0)
    places_BM, hidden_BM, shown_BT = hide(
        tokens_BT, maskable_BT, keys_B2, settings, mask_id=model.config.mask_id, vocab_size=model.config.vocab_size
    )
    states_BTD = model(shown_BT, batch["segment_ids"], batch["positions"])
    states_BMD = model.head(jnp.take_along_axis(states_BTD, places_BM[:, :, None], axis=1))
    # the bias of each word as one more row of the kernel
    ones_BM1 = jnp.ones((*places_BM.shape, 1), states_BMD.dtype)
    bias_1V = model.head.bias.get_value().astype(states_BMD.dtype)[None]
    nll_BM, _ = token_losses(
        jnp.concatenate([states_BMD, ones_BM1], axis=-1),
        jnp.concatenate([model.output_kernel(), bias_1V]),
        jnp.take_along_axis(tokens_BT, places_BM, axis=1),
        vocab_chunk=vocab_chunk,
    )
    return nll_BM, hidden_BM


def hide(
    tokens_BT: Int[Array, "B T"],
    maskable_BT: Bool[Array, "B T"],
    keys_B2: Array,
    settings: MaskedLM,
    *,
    mask_id: int,
    vocab_size: int,
) -> tuple[Int[Array, "B M"], Bool[Array, "B M"], Int[Array, "B T"]]:
    """(places of the hidden tokens, which of them are real, the tokens that the model sees), from one key a row.

    Exactly round(share x maskable tokens) of a row are hidden, at least one where there is any.
    """
    length = tokens_BT.shape[1]
    most = max(1, math.ceil(settings.share * length))
    keys_B = jax.random.wrap_key_data(keys_B2, impl="threefry2x32")

    def draw(key: Array) -> tuple[Array, Array, Array]:
        one, two, three = jax.random.split(key, 3)
        words_M = jax.random.randint(three, (most,), 0, vocab_size)
        return jax.random.uniform(one, (length,)), jax.random.uniform(two, (most,)), words_M

    order_BT, kind_BM, words_BM = jax.vmap(draw)(keys_B)
    _, places_BM = jax.lax.top_k(jnp.where(maskable_BT, order_BT, -1.0), most)
    number_B = jnp.sum(maskable_BT, axis=1)
    wanted_B = jnp.minimum(number_B, jnp.maximum(1, jnp.round(settings.share * number_B)).astype(jnp.int32))
    hidden_BM = jnp.arange(most) < wanted_B[:, None]
    old_BM = jnp.take_along_axis(tokens_BT, places_BM, axis=1)
    new_BM = jnp.where(kind_BM < settings.masked, mask_id, old_BM)
    swapped_BM = (kind_BM >= settings.masked) & (kind_BM < settings.masked + settings.replaced)
    new_BM = jnp.where(swapped_BM, words_BM, new_BM)
    rows_B1 = jnp.arange(tokens_BT.shape[0])[:, None]
    shown_BT = tokens_BT.at[rows_B1, places_BM].set(jnp.where(hidden_BM, new_BM, old_BM))
    return places_BM, hidden_BM, shown_BT


def row_content_keys(tokens_BT: Int[Array, "B T"]) -> Array:
    """A key for every held-out row from what stands in it: the same whatever batch it is in."""
    weights_T = (jnp.arange(tokens_BT.shape[1], dtype=jnp.uint32) * 2 + 1) * jnp.uint32(0x85EBCA6B)
    sums_B = jnp.sum(tokens_BT.astype(jnp.uint32) * weights_T, axis=1, dtype=jnp.uint32)
    return jnp.stack([sums_B, jnp.full_like(sums_B, _HELD_OUT)], axis=1)


def masked_nats(
    model: EncoderLM, batch: Batch, *, settings: MaskedLM, vocab_chunk: int | None = None
) -> Float[Array, ""]:
    """An estimate of the nats of all tokens of a batch, from those that are hidden."""
    nll_BM, hidden_BM = hidden_losses(model, batch, row_content_keys(batch["inputs"]), settings, vocab_chunk)
    maskable_B = jnp.sum((batch["segment_ids"] > 0) & (batch["positions"] > 0), axis=1)
    means_B = jnp.sum(jnp.where(hidden_BM, nll_BM, 0.0), axis=1) / jnp.maximum(1, jnp.sum(hidden_BM, axis=1))
    return jnp.sum(means_B * maskable_B)
