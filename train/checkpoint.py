"""Checkpoints of a run, written while training goes on, with Orbax v1."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """every_steps: steps between checkpoints (the last step always has one). keep: how many of the newest stay."""

    every_steps: int = 500
    keep: int = 2
