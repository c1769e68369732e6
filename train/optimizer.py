"""Optimizers and learning-rate schedules: AdamW and Muon, warmup-cosine and warmup-stable-decay.

A config holds one value of each (`optimizer=Muon(...)`, `schedule=WarmupCosine(...)`); a schedule multiplies the
optimizer's learning rate, in steps, so that a resumed run continues on the same curve.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array
from optax.contrib import MuonDimensionNumbers

from train.moments import stored_in_8_bits

MomentDtype = Literal["float32", "bfloat16", "int8"]
Names = tuple[str | None, ...]  # of one parameter's dims: ("layers", "embed", "mlp")
Axes = dict[str, Any]  # Names of every parameter, as nested as the parameters


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101).

    learning_rate: peak; the schedule multiplies it. weight_decay: times the learning rate, on matrices only (never on
    norms, biases and other vectors). moment_dtype: how both moments are stored; bfloat16 halves their memory, int8
    quarters it (train/moments.py). lora_b_ratio: learning rate of the `b` of adapters of projections over that of all
    else: LoRA+ (Hayou et al. 2024, arXiv:2402.12354, who use 16).
    """

    learning_rate: float = 3e-4
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    moment_dtype: MomentDtype = "float32"
    lora_b_ratio: float = 1.0

    def __post_init__(self) -> None:
        if self.moment_dtype == "bfloat16" and self.b2 > 0.99:  # a change of 1 - b2 must exceed bfloat16's step, 2**-8
            raise ValueError(f"optimizer.moment_dtype='bfloat16' needs b2 of at most 0.99, not {self.b2}")


@dataclass(frozen=True, kw_only=True)
class Muon:
    """Muon on the matrices of the layers (Jordan 2024; scaled as in Liu et al. 2025, arXiv:2502.16982), Adam elsewhere.

    learning_rate: peak for matrices; adam_learning_rate: peak for embeddings, output matrix, norms and biases.
    consistent_rms: scales every update to the root mean square that AdamW has; None scales by the shape's ratio.
    weight_decay: on the Muon matrices only. ns_steps: Newton-Schulz iterations. moment_dtype: of all first moments.
    """

    learning_rate: float = 2e-2
    adam_learning_rate: float = 2e-2
    beta: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5
    consistent_rms: float | None = 0.2
    weight_decay: float = 0.0
    adam_b1: float = 0.9
    adam_b2: float = 0.95
    eps: float = 1e-8
    moment_dtype: MomentDtype = "float32"


@dataclass(frozen=True, kw_only=True)
class WarmupCosine:
    """Linear warm-up from zero, then half a cosine down to `final_fraction` of the peak at the last step."""

    warmup_steps: int = 100
    final_fraction: float = 0.1


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay:
    """Linear warm-up from zero, a constant stretch, then a straight line to zero at the last step.

    decay_fraction: the share of the steps after warm-up that decay; 1.0 leaves no constant stretch.
    """

    warmup_steps: int = 100
    decay_fraction: float = 0.2

    def __post_init__(self) -> None:
        if not 0.0 < self.decay_fraction <= 1.0:
            raise ValueError(f"schedule.decay_fraction must be above 0 and at most 1, not {self.decay_fraction}")


def make_schedule(config: WarmupCosine | WarmupStableDecay, num_steps: int) -> Callable[[Array], Array]:
    """step (from 0) -> multiplier of every learning rate; both shapes reach their end at step `num_steps`."""
    warmup = min(config.warmup_steps, num_steps)
    after = max(num_steps - warmup, 1)

    def multiplier(step: Array) -> Array:
        rising = (step + 1) / max(warmup, 1)
        done = (step - warmup) / after  # 0 at the end of warm-up, 1 at num_steps
        if isinstance(config, WarmupCosine):
            half_wave = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0.0, 1.0)))
            falling = config.final_fraction + (1 - config.final_fraction) * half_wave
        else:
            falling = jnp.clip((1 - done) / config.decay_fraction, 0.0, 1.0)
        return jnp.where(step < warmup, rising, falling).astype(jnp.float32)

    return multiplier


def make_optimizer(config: AdamW | Muon, axes: Axes) -> optax.GradientTransformation:
    """The optax transformation whose updates, times the schedule's multiplier, are added to the parameters.

    axes: the names of every parameter's dims, as nested as the parameters (from `train.state.describe_model`).
    Clipping is the step's work. Weight decay is decoupled and touches matrices only.
    """
    decayed = jax.tree.map(lambda names: len(_own_dims(names)) >= 2, axes, is_leaf=_is_names)
    if isinstance(config, AdamW):
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(axes, is_leaf=_is_names)]
        if config.lora_b_ratio != 1.0 and not any(map(_is_lora_b, paths)):
            raise ValueError(f"optimizer.lora_b_ratio={config.lora_b_ratio} finds no adapter of a projection: set lora")
        return optax.chain(
            _stored_as(config.moment_dtype, optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)),
            optax.add_decayed_weights(config.weight_decay, decayed) if config.weight_decay else optax.identity(),
            optax.scale(-config.learning_rate),
            optax.identity() if config.lora_b_ratio == 1.0 else _scaled_where(_is_lora_b, config.lora_b_ratio),
        )
    matrices = jax.tree.map(_muon_dims, axes, is_leaf=_is_names)
    in_8_bits = config.moment_dtype == "int8"
    muon = optax.contrib.muon(
        config.learning_rate,
        adam_learning_rate=config.adam_learning_rate,
        beta=config.beta,
        nesterov=config.nesterov,
        ns_steps=config.ns_steps,
        consistent_rms=config.consistent_rms,
        weight_decay=config.weight_decay,
        adam_b1=config.adam_b1,
        adam_b2=config.adam_b2,
        eps=config.eps,
        mu_dtype="float32" if in_8_bits else config.moment_dtype,
        muon_weight_dimension_numbers=matrices,
    )
    return stored_in_8_bits(muon) if in_8_bits else muon


def peak_rates(config: AdamW | Muon) -> dict[str, float]:
    """Peak learning rates by the name under which a run logs them."""
    if isinstance(config, AdamW):
        return {"learning_rate": config.learning_rate}
    return {"learning_rate": config.learning_rate, "learning_rate/adam": config.adam_learning_rate}


def _muon_dims(names: Names) -> MuonDimensionNumbers | None:
    """Which dims of a stack of matrices Muon orthogonalises; None for what Adam updates.

    Embeddings and the output matrix stay with Adam (Jordan 2024: their columns are words, not a change of basis).
    """
    if len(_own_dims(names)) != 2 or "vocab" in names or "positions" in names:
        return None
    return MuonDimensionNumbers(len(names) - 2, len(names) - 1)


def _own_dims(names: Names) -> list[str | None]:
    """Dims of one matrix or vector, without those that only stack some of them."""
    return [name for name in names if name not in ("layers", "adapters")]


def _is_names(value: Any) -> bool:
    return isinstance(value, tuple)


def _stored_as(dtype: MomentDtype, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` computing in float32 while its moments rest in `dtype`: optax itself can store the first one only."""
    if dtype == "float32":
        return inner
    if dtype == "int8":
        return stored_in_8_bits(inner)

    def cast(state: Any, to: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(to) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, state)

    def init(params: Any) -> Any:
        return cast(inner.init(params), dtype)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = inner.update(updates, cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(init, update)


def _is_lora_b(path: tuple) -> bool:
    """Whether a parameter is the half of a projection's adapter that begins at zero; a token table's `b` does not."""
    names = [key.key for key in path]
    return names[-2:] in (["lora", "b"], ["lm_head_lora", "b"])


def _scaled_where(chosen: Callable[[tuple], bool], factor: float) -> optax.GradientTransformation:
    """Updates of the parameters at the chosen paths times a factor."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        scaled = lambda path, u: u * factor if chosen(path) else u  # noqa: E731
        return jax.tree_util.tree_map_with_path(scaled, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
