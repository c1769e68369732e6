"""cuDNN's flash attention on CUDA.

`cudnn_packed` hands cuDNN the place and length of every segment (Hopper and later), so that work and memory grow with
the segments. `cudnn` is jax's public path: causal, with the segments as a mask that is materialised.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.attention import AttentionShape

MAX_HEAD_DIM = 256  # cuDNN's bound on Hopper and later; 128 before
HOPPER_AND_LATER = ("H100", "H200", "H800", "H20", "GH200", "B100", "B200", "B300", "GB200", "GB300", "GB10", "RTX PRO")


def packed_obstacle(shape: "AttentionShape", backend: str, device_kind: str) -> str | None:
    """Why cuDNN's packed kernel cannot run this shape here, or None."""
    return "not yet"


def public_obstacle(shape: "AttentionShape", backend: str) -> str | None:
    """Why jax's public cuDNN path cannot run this shape here, or None."""
    return "not yet"
