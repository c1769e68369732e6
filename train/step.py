"""The training step: one jitted pure function (state, batch) -> (state, metrics)."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a training run does, apart from its data, model and optimizer.

    num_steps: optimizer updates. grad_accum_steps: micro-batches that one global batch is cut into.
    clip_norm: global gradient norm, None for no clipping. z_loss: weight of log(Z)^2 in the loss, 0 for none.
    ema_decay: of an exponential moving average of the parameters, None for none.
    vocab_chunk: columns of the output matrix per cross-entropy chunk, None for all at once.
    spike_factor: a step whose gradient norm is above this many times its running mean is skipped, None for never
    (steps that are not finite always are). max_skipped_in_a_row: the run stops after as many.
    compilation_cache: a folder for compiled programs, "" for none.
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
    compilation_cache: str = "~/.cache/sluice/jax"
    tensorboard: bool = True
    wandb_project: str | None = None
