"""Held-out bits per byte for each source, and samples."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """When and how a run looks at its model.

    every_steps: steps between held-out evaluations; the end always has a whole one. max_batches: held-out batches of an
    evaluation during training, None for all. prompts: what the samples continue; sample_tokens: tokens drawn for each;
    temperature: of the draws, 0 for the likeliest token.
    """

    every_steps: int = 500
    max_batches: int | None = None
    prompts: tuple[str, ...] = ("",)
    sample_tokens: int = 64
    temperature: float = 0.8
