"""Does a written model do what the trained one did? Its distance over held-out tokens, as numbers and a verdict.

Merging is not exact where a base was quantised or the result is stored in fewer bits; no perplexity check shows that,
because a slightly wrong model still reads well. The KL divergence of every token's distribution does.

Shapes: B batch, T sequence, D embed, V vocabulary, C tokens whose logits exist at a time.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from models.rows import RowContext
from models.transformer import CausalLM

LOGIT_TOKENS = 256  # tokens whose logits of both models are in memory at once
MAX_MEAN_KL = 5e-3  # nats a token
MAX_LOSS_INCREASE = 0.01  # nats a token with loss


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far a model is from the one that was trained. KL is of p_trained to p_written, nats.

    tokens: all that were compared. loss and trained_loss: nats a token with loss weight, over the same tokens.
    """

    tokens: int
    mean_kl: float
    max_kl: float
    argmax_agreement: float
    trained_loss: float
    loss: float

    def failures(self, max_mean_kl: float = MAX_MEAN_KL, max_loss_increase: float = MAX_LOSS_INCREASE) -> list[str]:
        """What is beyond its limit, as sentences; empty where the written model may stand for the trained one."""
        found = []
        if not self.mean_kl <= max_mean_kl:
            found.append(f"mean KL {self.mean_kl:.3g} nats a token, the limit is {max_mean_kl:g}")
        if not self.loss - self.trained_loss <= max_loss_increase:
            found.append(
                f"held-out loss {self.loss:.4f} against {self.trained_loss:.4f}, the limit is +{max_loss_increase:g}"
            )
        return found

    def as_json(self) -> dict[str, Any]:
        """The numbers by name."""
        return asdict(self) | {"loss_difference": self.loss - self.trained_loss}


def distance(
    trained: CausalLM, written: CausalLM, batches: Iterable[Mapping[str, np.ndarray]], *, adapter: int = 0
) -> Distance:
    """Compares two models over batches of rows (data/rows.py); padding does not count.

    adapter: which of the trained model's adapters acts; the written one has none.
    """
    (graph, state), (other_graph, other_state) = nnx.split(trained), nnx.split(written)
    sums: dict[str, float] = {}
    for batch in batches:
        found = jax.device_get(_sums(graph, other_graph, state, other_state, dict(batch), adapter))
        for name, value in found.items():
            sums[name] = (
                max(sums.get(name, 0.0), float(value)) if name == "max_kl" else sums.get(name, 0.0) + float(value)
            )
    if not sums.get("tokens") or not sums["weight"]:
        raise ValueError("no held-out tokens to compare the models on")
    return Distance(
        tokens=int(sums["tokens"]),
        mean_kl=sums["kl"] / sums["tokens"],
        max_kl=sums["max_kl"],
        argmax_agreement=sums["agree"] / sums["tokens"],
        trained_loss=sums["trained_nll"] / sums["weight"],
        loss=sums["nll"] / sums["weight"],
    )


@partial(jax.jit, static_argnums=(0, 1))
def _sums(
    graph: Any, other_graph: Any, state: Any, other_state: Any, batch: dict[str, Array], adapter: Any
) -> dict[str, Array]:
    models = nnx.merge(graph, state), nnx.merge(other_graph, other_state)
    inputs = batch["inputs"], batch["segment_ids"], batch["positions"]
    rows = RowContext(adapter_ids_B=jnp.full(len(batch["inputs"]), adapter, jnp.int32))
    hidden = [model(*inputs, rows=rows).reshape(batch["inputs"].size, -1) for model in models]
    count = math.gcd(batch["inputs"].size, LOGIT_TOKENS)
    flat = [*hidden, *(batch[name].reshape(-1) for name in ("targets", "segment_ids", "loss_weights"))]

    def visit(part: tuple[Array, ...]) -> dict[str, Array]:
        ours_CD, theirs_CD, targets_C, segments_C, weights_C = part
        logs = [jax.nn.log_softmax(model.logits(h_CD)) for model, h_CD in zip(models, (ours_CD, theirs_CD))]
        there_C = segments_C > 0
        kl_C = jnp.where(there_C, jnp.sum(jnp.exp(logs[0]) * (logs[0] - logs[1]), axis=-1), 0.0)
        nll = [-jnp.take_along_axis(log_CV, targets_C[:, None], axis=1)[:, 0] * weights_C for log_CV in logs]
        agree_C = there_C & (logs[0].argmax(-1) == logs[1].argmax(-1))
        return {
            "tokens": there_C.sum(),
            "weight": weights_C.sum(),
            "kl": kl_C.sum(),
            "max_kl": kl_C.max(),
            "agree": agree_C.sum(),
            "trained_nll": nll[0].sum(),
            "nll": nll[1].sum(),
        }

    parts = jax.lax.map(visit, tuple(array.reshape(-1, count, *array.shape[1:]) for array in flat))
    return {name: values.max() if name == "max_kl" else values.sum() for name, values in parts.items()}
