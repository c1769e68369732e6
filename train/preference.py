"""Preference tuning: Direct Preference Optimization (Rafailov et al. 2023, arXiv:2305.18290, equation 7).

Shapes: B batch, T sequence, P pairs of a row (at most T / 2), V vocabulary, D embed.

A preference lies in one row as two segments, the chosen chat and then the rejected one (data/rows.py), and a row holds
as many as fit: no padding, and no bookkeeping of which row belongs to which. The reference is the base without its
adapter, which is there anyway: the second forward pass asks for adapter -1, and there is no second copy of the model.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models.lora import CHANGES_BASE, LoRA
from models.rows import RowContext
from models.transformer import CausalLM
from train.loss import Batch, next_token_nats, token_losses
from train.objectives import check_adapters
from train.step import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Preference:
    """-log sigmoid(beta * margin) of every pair; margin = log p/p_reference of chosen less that of rejected.

    beta: how dear it is to leave the reference. label_smoothing: share of pairs whose order is taken to be wrong
    (conservative DPO, Mitchell 2023). Reported per pair: `loss`, `accuracy` (share of pairs with a margin above 0),
    `margin` (in nats) and `chosen`, the log ratio of the chosen answers alone, which may fall while the loss does.
    """

    draws = False
    beta: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not self.beta > 0.0 or not 0.0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"objective: beta={self.beta} must be above 0, label_smoothing={self.label_smoothing} in [0, 0.5)"
            )

    def make(self, options: TrainConfig) -> Any:
        """(model, batch) -> (sum to differentiate, sums to report); ValueError for a z-loss: there is none here."""
        if options.z_loss:
            raise ValueError(f"train.z_loss={options.z_loss} is of objective=NextToken(): set 0 for Preference()")
        return partial(
            preference_objective,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            vocab_chunk=options.vocab_chunk,
        )

    def nats(self, options: TrainConfig) -> Any:
        """(model, batch) -> nats of all its tokens."""
        return partial(next_token_nats, vocab_chunk=options.vocab_chunk)

    def check(self, lora: LoRA | None, *, paired: bool, adapters: tuple[str, ...] = ()) -> None:
        """ValueError where the data are no preferences, or the base is not there as it was."""
        check_adapters(lora, adapters)
        if not paired:
            raise ValueError("objective=Preference() needs preferences: chats with a chosen and a rejected answer")
        if lora is None or lora.bias != "none" or lora.also_train or lora.init in CHANGES_BASE:
            raise ValueError(
                "objective=Preference() takes the base without its adapter as the reference, so the base must stay as "
                "it is: set lora=LoRA(...) with bias='none', no also_train, and init='kaiming' or 'gaussian'"
            )


def preference_objective(
    model: CausalLM, batch: Batch, *, beta: float, label_smoothing: float = 0.0, vocab_chunk: int | None = None
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """(sum over pairs of the loss, sums to report with `weight` = number of pairs); see `Preference`."""
    reference = RowContext(adapter_ids_B=jnp.full(batch["inputs"].shape[0], -1, jnp.int32))
    policy_chosen_BP, policy_rejected_BP = pair_log_probs(model, batch, RowContext.of_batch(batch), vocab_chunk)
    chosen_BP, rejected_BP = jax.lax.stop_gradient(pair_log_probs(model, batch, reference, vocab_chunk))
    gain_BP = policy_chosen_BP - chosen_BP
    margin_BP = gain_BP - (policy_rejected_BP - rejected_BP)
    right, wrong = jax.nn.log_sigmoid(beta * margin_BP), jax.nn.log_sigmoid(-beta * margin_BP)
    there_BP = pairs_of(batch)

    def total(value_BP: Array) -> Array:
        return jnp.sum(jnp.where(there_BP, value_BP, 0.0))

    loss = total(-(1.0 - label_smoothing) * right - label_smoothing * wrong)
    sums = {"loss": loss, "weight": total(jnp.ones_like(margin_BP)), "accuracy": total(margin_BP > 0.0)}
    return loss, sums | {"margin": total(margin_BP), "chosen": total(gain_BP)}


def pair_log_probs(
    model: CausalLM, batch: Batch, rows: RowContext | None, vocab_chunk: int | None
) -> tuple[Float[Array, "B P"], Float[Array, "B P"]]:
    """Log probability of the chosen and of the rejected answer of every pair, nats, sums over tokens with loss."""
    hidden_BTD = model(batch["inputs"], batch["segment_ids"], batch["positions"], rows=rows)
    softcap = model.config.embedding.logit_softcap
    nll_BT, _ = token_losses(
        hidden_BTD, model.output_kernel(), batch["targets"], vocab_chunk=vocab_chunk, softcap=softcap
    )
    return by_side(-nll_BT * batch["loss_weights"], batch["segment_ids"])


def by_side(value_BT: Float[Array, "B T"], segment_ids_BT: Int[Array, "B T"]) -> tuple[Array, Array]:
    """Sums over segments: [B, P] of the odd ones, which are chosen, and of the even ones after them."""
    pairs = value_BT.shape[1] // 2
    add = partial(jax.ops.segment_sum, num_segments=2 * pairs + 1)
    sums_BS = jax.vmap(add)(value_BT, segment_ids_BT)
    return sums_BS[:, 1::2], sums_BS[:, 2::2]


def pairs_of(batch: Batch) -> Bool[Array, "B P"]:
    """Which pairs are there: both sides have tokens with loss."""
    chosen_BP, rejected_BP = by_side(batch["loss_weights"], batch["segment_ids"])
    return (chosen_BP > 0.0) & (rejected_BP > 0.0)
