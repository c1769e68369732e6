"""Optimizers and learning-rate schedules: AdamW and Muon, warmup-cosine and warmup-stable-decay.

A config holds one value of each (`optimizer=Muon(...)`, `schedule=WarmupCosine(...)`); a schedule is a multiplier of the
optimizer's learning rate, in steps, so that a resumed run continues on the same curve.
"""

from dataclasses import dataclass
from typing import Literal

MomentDtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101).

    learning_rate: peak; the schedule multiplies it. weight_decay: times the learning rate, on matrices only (never on
    norms, biases and other vectors). moment_dtype: how both moments are stored; bfloat16 halves their memory.
    """

    learning_rate: float = 3e-4
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    moment_dtype: MomentDtype = "float32"


@dataclass(frozen=True, kw_only=True)
class Muon:
    """Muon on the matrices of the layers (Jordan 2024; scaled as in Liu et al. 2025, arXiv:2502.16982), Adam elsewhere.

    learning_rate: peak for matrices; adam_learning_rate: peak for embeddings, output matrix, norms and biases.
    consistent_rms: scales every update to the root mean square that AdamW has; None scales by the shape's ratio instead.
    weight_decay: on the Muon matrices only. ns_steps: Newton-Schulz iterations.
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
