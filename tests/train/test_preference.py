"""Packed chats and preferences: the same loss as each chat alone, and DPO as its paper writes it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.config import Embedding, Execution, ModelConfig
from models.lora import LoRA, add_lora, without_lora
from models.transformer import CausalLM
from train.loss import next_token_objective
from train.objectives import NextToken
from train.preference import Preference, preference_objective
from train.step import TrainConfig

VOCAB, ROW = 96, 64
RNG = np.random.default_rng(7)


@pytest.fixture(scope="module")
def model() -> CausalLM:
    """Adapters that do something, on a base of random weights."""
    config = ModelConfig(
        vocab_size=VOCAB,
        num_layers=2,
        embed_dim=32,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        mlp_dim=64,
        embedding=Embedding(tied=True),
        execution=Execution(scan_unroll=1),
        dtype="float32",
    )

    def make() -> CausalLM:
        model = add_lora(CausalLM(config, rngs=nnx.Rngs(0)), LoRA(targets=("q", "down"), dropout=0.0), rngs=nnx.Rngs(1))
        for number, adapter in enumerate((model.layers.attention.q.lora, model.layers.mlp.down.lora)):
            adapter.b = adapter.b.replace(0.3 * jax.random.normal(jax.random.key(number), adapter.b.shape))
        return model

    graph = nnx.split(nnx.eval_shape(make))[0]
    return nnx.merge(graph, jax.jit(lambda: nnx.state(make()))())


def chat(length: int, answer: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and loss weights: the last `answer` ids have loss."""
    return RNG.integers(0, VOCAB, length), np.arange(length) >= length - answer


def packed(rows: list[list[tuple[np.ndarray, np.ndarray]]], *, joined: bool = False) -> dict[str, jax.Array]:
    """Rows as data/rows.py lays them out. joined: neighbours are a preference, whose border has a place of its own."""
    batch = {name: np.zeros((len(rows), ROW), np.int32) for name in ("inputs", "targets", "segment_ids", "positions")}
    batch["loss_weights"] = np.zeros((len(rows), ROW), np.float32)
    for row, chats in enumerate(rows):
        at = 0
        for segment, (ids, weights) in enumerate(chats, start=1):
            size = len(ids) - 1
            span = slice(at, at + size)
            batch["inputs"][row, span], batch["targets"][row, span] = ids[:-1], ids[1:]
            batch["segment_ids"][row, span], batch["positions"][row, span] = segment, np.arange(size)
            batch["loss_weights"][row, span] = weights[1:]
            at += size
            if joined and segment % 2:  # the chosen chat's last id, whose target is of the other chat
                batch["inputs"][row, at], batch["segment_ids"][row, at], batch["positions"][row, at] = (
                    ids[-1],
                    segment,
                    size,
                )
                at += 1
    return {name: jnp.asarray(array) for name, array in batch.items()}


CHATS = [chat(19, 7), chat(11, 3), chat(30, 12), chat(25, 9), chat(8, 2)]


def test_packed_loss_is_the_loss_of_each_chat_alone(model: CausalLM) -> None:
    """With loss on answers only: neither a neighbour nor padding changes anything."""
    together = packed([CHATS[:3], CHATS[3:], [], [], []])  # as many rows, so that one program serves both
    alone = packed([[one] for one in CHATS])
    graph, state = nnx.split(model)
    loss = jax.jit(lambda state, batch: next_token_objective(nnx.merge(graph, state), batch)[1])
    ours, theirs = loss(state, together), loss(state, alone)
    assert float(ours["weight"]) == float(theirs["weight"]) == sum(weights[1:].sum() for _, weights in CHATS)
    assert float(ours["loss"] / ours["weight"]) == pytest.approx(float(theirs["loss"] / theirs["weight"]), abs=1e-5)
    unmasked = dict(together) | {"segment_ids": jnp.minimum(together["segment_ids"], 1)}
    leaked = loss(state, unmasked)
    assert abs(float(leaked["loss"] - ours["loss"])) > 1e-2  # the equality can fail: chats that see each other differ


def log_probs(model: Any) -> list[float]:
    """Log probability of the answer of each of CHATS, from logits alone, one chat a row."""
    graph, state = nnx.split(model)
    alone = packed([[one] for one in CHATS])

    @jax.jit
    def log_p(state: Any) -> jax.Array:
        model = nnx.merge(graph, state)
        return jax.nn.log_softmax(model.logits(model(alone["inputs"], alone["segment_ids"], alone["positions"])))

    log_p_BTV = np.asarray(log_p(state))
    return [
        float(sum(log_p_BTV[row, place - 1, ids[place]] for place in range(1, len(ids)) if weights[place]))
        for row, (ids, weights) in enumerate(CHATS)
    ]


def test_preference_loss_is_that_of_the_paper(model: CausalLM) -> None:
    pairs = [(0, 1), (4, 3), (1, 4)]  # of CHATS
    batch = packed([[CHATS[i] for i in (*pairs[0], *pairs[2])], [CHATS[i] for i in pairs[1]]], joined=True)
    graph, state = nnx.split(model)
    run = jax.jit(lambda state: preference_objective(nnx.merge(graph, state), batch, beta=0.3, label_smoothing=0.1))
    total, sums = run(state)
    gains = np.subtract(log_probs(model), log_probs(without_lora(model)))
    losses, margins = [], []
    for chosen, rejected in pairs:
        margin = float(gains[chosen] - gains[rejected])
        margins.append(margin)
        sigmoid = 1 / (1 + math.exp(-0.3 * margin))
        losses.append(-0.9 * math.log(sigmoid) - 0.1 * math.log(1 - sigmoid))
    assert float(total) == pytest.approx(sum(losses), rel=1e-4)
    assert float(sums["weight"]) == 3
    assert float(sums["margin"]) == pytest.approx(sum(margins), rel=1e-3, abs=1e-3)
    assert float(sums["accuracy"]) == sum(margin > 0 for margin in margins)


def test_preference_begins_at_log_two_and_trains_the_adapter_alone(model: CausalLM) -> None:
    """A fresh adapter is the reference: every margin is 0. Only adapters feel the loss."""
    fresh = add_lora(without_lora(model), LoRA(targets=("q", "v"), dropout=0.0), rngs=nnx.Rngs(3))
    batch = packed([[CHATS[0], CHATS[1]], [CHATS[4], CHATS[3]]], joined=True)
    graph, state = nnx.split(fresh)
    loss = lambda state: preference_objective(nnx.merge(graph, state), batch, beta=0.1)  # noqa: E731
    (total, sums), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(state)
    assert float(total) == pytest.approx(2 * math.log(2), abs=1e-6) and float(sums["margin"]) == 0.0
    moved = [path for path, leaf in nnx.to_flat_state(gradients) if path[-1] == "b" and np.abs(leaf).max() > 0]
    assert len(moved) == 2


def test_objectives_refuse_the_other_ones_data() -> None:
    with pytest.raises(ValueError, match="the data are preferences"):
        NextToken().check(None, paired=True)
    for objective, paired in ((NextToken(), False), (Preference(), True)):
        for lora, adapters in ((LoRA(names=("a", "b")), ()), (LoRA(), ("a",)), (None, ("a", "b"))):
            with pytest.raises(ValueError, match="for several adapters in one run give both, in the same order"):
                objective.check(lora, paired=paired, adapters=adapters)
        with pytest.raises(ValueError, match="these belong to the base, which several adapters share"):
            objective.check(LoRA(names=("a", "b"), bias="all"), paired=paired, adapters=("a", "b"))
        objective.check(LoRA(names=("a", "b")), paired=paired, adapters=("a", "b"))
    with pytest.raises(ValueError, match="needs preferences"):
        Preference().check(LoRA(), paired=False)
    for lora in (None, LoRA(bias="all"), LoRA(also_train=("final_norm",)), LoRA(init="pissa")):
        with pytest.raises(ValueError, match="the base without its adapter as the reference"):
            Preference().check(lora, paired=True)
    with pytest.raises(ValueError, match=r"train.z_loss=0.001 is of objective=NextToken"):
        Preference().make(TrainConfig(num_steps=1, z_loss=1e-3))
    with pytest.raises(ValueError, match=r"beta=0.0 must be above 0"):
        Preference(beta=0.0)
