"""Is a loaded model right? Its logits against those of transformers on torch, as numbers and gates.

A wrong layout gives finite, readable text and a plausible perplexity; the logits over a few hundred tokens show it
(reference values in the tests: a correct port differs by 1e-4, a rotary bug by 24).
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.transformer import CausalLM

MIN_TOKENS = 256  # shorter prompts cannot show errors of the rotation
GATES: dict[str, dict[str, float]] = {  # by compute dtype: largest |logit difference| and largest KL, nats
    "float32": {"max_logit_difference": 1e-3, "max_kl": 1e-5},
    "bfloat16": {"max_kl": 0.02},
}
PASSAGE = (
    "The old observatory stood on a hill above the harbour, where three generations of the same family had kept "
    "the records of the tides. Every morning the keeper walked down to the water, read the height of the sea from "
    "a brass scale, and wrote the number into a ledger bound in green cloth. Nobody had asked for these numbers "
    "in years. The navy had its own instruments now, and the fishermen trusted their eyes. Still, the keeper "
    "said, a series is worth more than any one of its numbers, and a gap can never be filled afterwards. When the "
    "engineers came to plan the new bridge, they found that the ledgers were the only record of how the channel "
    "had shifted over a hundred and twenty years. They copied every page, plotted the heights by hand, and "
    "discovered a slow rhythm that no model of theirs had predicted: about once in eighteen years the water rose "
    "a little higher than before, stayed for a season, and then withdrew. The bridge was raised by half a metre "
    "because of it. On the day it opened, the keeper was invited to cut the ribbon, but he sent his daughter in "
    "his place, since the tide was due at noon and somebody had to read the scale. She told the crowd what her "
    "grandfather used to say: that patience is only another word for paying attention for a long time. Then she "
    "asked them to hurry, because she would be reading the evening tide herself."
)


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far two sets of logits for the same tokens are apart. KL is of p_reference to p_ours, nats."""

    tokens: int
    dtype: str
    max_logit_difference: float
    max_kl: float
    argmax_agreement: float
    perplexity: float
    reference_perplexity: float

    @property
    def failures(self) -> list[str]:
        """The gates that are not met, as sentences; empty where the model is right."""
        limits = GATES[self.dtype]
        return [
            f"{name} is {getattr(self, name):.3g}, the limit for {self.dtype} is {limit:g}"
            for name, limit in limits.items()
            if not getattr(self, name) < limit
        ]

    def as_json(self) -> dict[str, Any]:
        """The certificate."""
        difference = self.perplexity / self.reference_perplexity - 1.0
        return asdict(self) | {
            "perplexity_difference": difference,
            "passed": not self.failures,
            "gates": GATES[self.dtype],
        }


def our_logits(model: CausalLM, ids: np.ndarray) -> np.ndarray:
    """[T, V] float32 logits of one document of ids."""
    graph, state = nnx.split(model)

    @jax.jit
    def logits(state: Any, ids_1T: jax.Array) -> jax.Array:
        model = nnx.merge(graph, state)
        return model.logits(model(ids_1T, jnp.ones_like(ids_1T), jnp.arange(ids_1T.shape[1])[None]))

    return np.asarray(logits(state, jnp.asarray(ids, jnp.int32)[None]))[0]


def compare(ours: np.ndarray, reference: np.ndarray, ids: np.ndarray, dtype: str) -> Parity:
    """The distances of two sets of logits [T, V] for the same ids [T]; computed in float64."""
    if ours.shape != reference.shape:
        raise ValueError(f"logits of shape {ours.shape} cannot be compared with {reference.shape}: another vocabulary?")
    ours64, theirs64 = _log_softmax(ours), _log_softmax(reference)
    kl_T = np.sum(np.exp(theirs64) * (theirs64 - ours64), axis=-1)
    following = np.arange(len(ids) - 1), ids[1:]
    return Parity(
        tokens=len(ids),
        dtype=dtype,
        max_logit_difference=float(np.abs(ours.astype(np.float64) - reference).max()),
        max_kl=float(kl_T.max()),
        argmax_agreement=float(np.mean(ours.argmax(-1) == reference.argmax(-1))),
        perplexity=math.exp(-float(ours64[following].mean())),
        reference_perplexity=math.exp(-float(theirs64[following].mean())),
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide = wide - wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
