"""The training step: one jitted pure function (state, batch) -> (state, metrics).

    gradients of sum(weight x loss), micro-batch by micro-batch     -> divided once by the total weight
    -> clipped by their global norm -> optimizer -> parameters, moving average

A step whose loss or gradient is not finite, or whose gradient norm spikes, leaves parameters and optimizer as they
were: the decision is made on the device, so nothing waits for it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from models.rows import DROPOUT_KEYS, row_keys
from train.meeting import MeetingConfig
from train.state import Params, TrainState, merge

Batch = Mapping[str, Array]
Metrics = dict[str, Array]
# (model, batch) -> (sum to differentiate, sums to report: "loss", "weight" and others)
Objective = Callable[[Any, Batch], tuple[Float[Array, ""], Metrics]]

SPIKE_MEMORY = 0.98  # of the running mean of gradient norms, per step: about the last 50 steps
SPIKE_WARMUP = 50  # steps before spikes are looked for: norms fall fast at first


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a training run does, apart from its data, model and optimizer.

    num_steps: optimizer updates. grad_accum_steps: micro-batches that one global batch is cut into.
    clip_norm: global gradient norm, None for no clipping. z_loss: weight of log(Z)^2 in the loss, 0 for none.
    ema_decay: of an exponential moving average of the parameters, None for none.
    vocab_chunk: columns of the output matrix per cross-entropy chunk, None for all at once.
    spike_factor: a step whose gradient norm is above this many times its running mean is skipped, None for never
    (steps that are not finite always are). max_skipped_in_a_row: the run stops after as many.
    freeze: patterns of parameters that are not trained (see models.tuning).
    compilation_cache: a folder for compiled programs, "" for none.
    meeting: limits after which processes that do not come, fall silent or stand still end the run.
    tensorboard: write RUN/tensorboard. wandb_project: also log to Weights & Biases, None for not.
    """

    num_steps: int
    grad_accum_steps: int = 1
    clip_norm: float | None = 1.0
    z_loss: float = 0.0
    ema_decay: float | None = None
    vocab_chunk: int | None = None
    spike_factor: float | None = None
    max_skipped_in_a_row: int = 20
    seed: int = 0
    log_every: int = 10
    freeze: tuple[str, ...] = ()
    compilation_cache: str = "~/.cache/sluice/jax"
    tensorboard: bool = True
    wandb_project: str | None = None
    meeting: MeetingConfig = MeetingConfig()

    def __post_init__(self) -> None:
        for name in ("num_steps", "grad_accum_steps", "log_every", "max_skipped_in_a_row"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, not {getattr(self, name)}")
        if self.vocab_chunk is not None and self.vocab_chunk < 1:
            raise ValueError(f"train.vocab_chunk must be at least 1 or None, not {self.vocab_chunk}")
        if self.ema_decay is not None and not 0.0 < self.ema_decay < 1.0:
            raise ValueError(f"train.ema_decay must lie between 0 and 1 or be None, not {self.ema_decay}")


def make_train_step(
    objective: Objective,
    graphdef: nnx.GraphDef,
    tx: optax.GradientTransformation,
    schedule: Callable[[Array], Array],
    config: TrainConfig,
    *,
    shardings: TrainState,
    batch_sharding: NamedSharding,
    dropout: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted step; its first argument is donated: use the state that it returns, never the one that went in.

    objective: what is minimised. schedule: step -> multiplier of the learning rates inside `tx`.
    shardings: of every leaf of the state; batch_sharding: of every [B, ...] array of the batch. dropout: hand the
    objective a key for every row, made from (train.seed, step, row) alone.
    Metrics are float32 scalars on the device: `loss` (nats per unit of weight), `gradient_norm` (before clipping),
    `schedule`, `tokens` (not padding), `skipped` (1 where this step changed nothing), `skipped_total`.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if dropout:
            batch = dict(batch) | {DROPOUT_KEYS: row_keys(config.seed, state.step, batch["segment_ids"].shape[0])}
        sums, gradients = accumulate(objective, graphdef, state.params, batch, config.grad_accum_steps, state.frozen)
        weight = jnp.maximum(sums.pop("weight"), jnp.finfo(jnp.float32).tiny)  # a batch of padding alone
        metrics = {name: value / weight for name, value in sums.items()}

        norm = optax.tree.norm(gradients) / weight
        scale = 1.0 / weight
        if config.clip_norm is not None:
            scale *= jnp.minimum(1.0, config.clip_norm / jnp.maximum(norm, 1e-12))
        gradients = jax.tree.map(lambda g: g * scale, gradients)

        rate = schedule(state.step)
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p + (rate * u).astype(p.dtype), state.params, updates)

        taken = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        if config.spike_factor is not None:
            settled = state.step - state.skipped >= SPIKE_WARMUP
            taken &= ~settled | (norm <= config.spike_factor * state.norm_mean)
        new = TrainState(
            step=state.step,
            params=params,
            opt_state=opt_state,
            ema=_moving_average(state.ema, params, config.ema_decay),
            skipped=state.skipped,
            norm_mean=jnp.where(state.norm_mean == 0, norm, SPIKE_MEMORY * state.norm_mean + (1 - SPIKE_MEMORY) * norm),
        )
        new = jax.tree.map(lambda after, before: jnp.where(taken, after, before), new, replace(state, frozen={}))
        skipped = 1 - taken.astype(jnp.int32)
        new = replace(new, step=state.step + 1, skipped=state.skipped + skipped, frozen=state.frozen)
        metrics |= {"gradient_norm": norm, "schedule": rate, "tokens": jnp.sum(batch["segment_ids"] > 0)}
        metrics |= {"skipped": skipped, "skipped_total": new.skipped}
        return new, {name: value.astype(jnp.float32) for name, value in metrics.items()}

    everywhere = NamedSharding(batch_sharding.mesh, PartitionSpec())
    return jax.jit(
        train_step,
        in_shardings=(shardings, batch_sharding),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
    )


def accumulate(
    objective: Objective,
    graphdef: nnx.GraphDef,
    params: Params,
    batch: Batch,
    micro_batches: int,
    frozen: Params | None = None,
) -> tuple[Metrics, Params]:
    """(sums to report, gradients of the summed objective) over all rows of the batch, not yet divided by any weight.

    Gradients are of `params` alone; `frozen` holds the model's other parameters.

    With micro_batches > 1 the rows are visited in as many parts by a scan, gradients added in their own dtype; part i
    takes the rows i, i + micro_batches, ..., so that every device has its share of every part.
    """

    def sum_of(params: Params, batch: Batch) -> tuple[Array, Metrics]:
        return objective(merge(graphdef, params, frozen), batch)

    gradient = jax.value_and_grad(sum_of, has_aux=True)
    if micro_batches == 1:
        (_, sums), gradients = gradient(params, batch)
        return sums, gradients

    def visit(total: tuple, part: Batch) -> tuple:
        (_, sums), gradients = gradient(params, part)
        return jax.tree.map(jnp.add, total, (sums, gradients)), None

    parts = {name: array.reshape(-1, micro_batches, *array.shape[1:]).swapaxes(0, 1) for name, array in batch.items()}
    first = jax.eval_shape(lambda part: gradient(params, part), {name: array[0] for name, array in parts.items()})
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (first[0][1], first[1]))
    (sums, gradients), _ = jax.lax.scan(visit, zeros, parts)
    return sums, gradients


def _moving_average(ema: Params | None, params: Params, decay: float | None) -> Params | None:
    if ema is None or decay is None:
        return None
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, params)
