"""The chunked cross-entropy equals the plain one, in value and gradient; packing changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.sharding import MeshConfig, make_mesh
from models.transformer import CausalLM
from tests.train.tiny import random_batch, tiny_model
from train.loss import next_token_objective, token_losses
from train.state import merge
from train.step import accumulate


def plain_losses(hidden, kernel, targets, softcap=None):
    logits = hidden @ kernel
    logits = logits if softcap is None else softcap * jnp.tanh(logits / softcap)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    return log_z - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0], log_z


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("vocab_chunk", [None, 50, 16, 7, 1])
def test_chunks_of_the_vocabulary_change_neither_loss_nor_gradient(vocab_chunk, softcap):
    keys = jax.random.split(jax.random.key(0), 5)
    hidden, kernel = jax.random.normal(keys[0], (2, 6, 8)), jax.random.normal(keys[1], (8, 50))
    targets = jax.random.randint(keys[2], (2, 6), 0, 50)
    scales = jax.random.normal(keys[3], (2, 6)), jax.random.normal(keys[4], (2, 6))

    def total(losses, hidden, kernel):
        nll, log_z = losses(hidden, kernel, targets)
        return jnp.sum(scales[0] * nll) + jnp.sum(scales[1] * log_z**2), (nll, log_z)

    ours = functools.partial(token_losses, vocab_chunk=vocab_chunk, softcap=softcap)
    (_, got), got_grads = jax.jit(jax.value_and_grad(functools.partial(total, ours), (0, 1), has_aux=True))(
        hidden, kernel
    )
    plain = functools.partial(plain_losses, softcap=softcap)
    (_, want), want_grads = jax.value_and_grad(functools.partial(total, plain), (0, 1), has_aux=True)(hidden, kernel)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    for got_grad, want_grad in zip(got_grads, want_grads):
        np.testing.assert_allclose(got_grad, want_grad, rtol=1e-4, atol=2e-5)


def test_chunks_bound_the_memory_of_the_logits():
    hidden, kernel = jnp.zeros((4, 64, 16)), jnp.zeros((16, 32_000))
    targets = jnp.zeros((4, 64), jnp.int32)

    def temporary_bytes(vocab_chunk):
        def total(hidden, kernel):
            return token_losses(hidden, kernel, targets, vocab_chunk=vocab_chunk)[0].sum()

        return jax.jit(jax.grad(total, (0, 1))).lower(hidden, kernel).compile().memory_analysis().temp_size_in_bytes

    all_logits = 4 * 64 * 32_000 * 4
    assert temporary_bytes(None) >= all_logits
    assert temporary_bytes(1000) < all_logits / 4


def test_one_chunk_adds_no_matrix_product():
    hidden, kernel, targets = jnp.zeros((4, 64, 16)), jnp.zeros((16, 2048)), jnp.zeros((4, 64), jnp.int32)

    def flops(losses):
        total = jax.grad(lambda hidden, kernel: losses(hidden, kernel, targets)[0].sum(), (0, 1))
        return str(jax.make_jaxpr(total)(hidden, kernel)).count("dot_general")

    assert flops(token_losses) == flops(plain_losses) == 3


def test_loss_is_float32_when_the_model_is_bfloat16():
    hidden, kernel = jnp.ones((1, 3, 8), jnp.bfloat16), jnp.ones((8, 50), jnp.bfloat16)
    for vocab_chunk in (None, 16):
        nll, log_z = token_losses(hidden, kernel, jnp.zeros((1, 3), jnp.int32), vocab_chunk=vocab_chunk)
        assert nll.dtype == log_z.dtype == jnp.float32
        np.testing.assert_allclose(nll, np.log(50.0), rtol=1e-6)


def test_packed_loss_and_gradients_equal_the_sum_over_unpacked_documents():
    config = tiny_model()
    graphdef, state = nnx.split(CausalLM(config, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(state)
    batch = random_batch(0, rows=4)
    batch["loss_weights"] = (batch["segment_ids"] > 0).astype(np.float32)

    def nats(params, batch):
        return next_token_objective(merge(graphdef, params), batch)[0]

    with jax.set_mesh(make_mesh(MeshConfig())):
        gradient = jax.jit(jax.value_and_grad(nats))
        packed_loss, packed_grads = gradient(params, batch)
        loss, grads = 0.0, jax.tree.map(jnp.zeros_like, params)
        for row, segment in [(row, segment) for row in range(4) for segment in (1, 2)]:
            where = batch["segment_ids"][row] == segment
            alone = {name: np.zeros((1, 16), array.dtype) for name, array in batch.items()}
            for name, array in batch.items():
                alone[name][0, : where.sum()] = array[row, where]
            alone["segment_ids"] = np.minimum(alone["segment_ids"], 1)
            part_loss, part_grads = gradient(params, alone)
            loss, grads = loss + part_loss, jax.tree.map(jnp.add, grads, part_grads)
    np.testing.assert_allclose(packed_loss, loss, rtol=1e-5)
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)))
    for ours, theirs in zip(jax.tree.leaves(packed_grads), jax.tree.leaves(grads)):
        assert float(jnp.abs(ours - theirs).max()) <= 1e-5 * norm


def test_accumulation_equals_one_batch_with_uneven_loss_weights():
    config = tiny_model()
    graphdef, state = nnx.split(CausalLM(config, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(state)
    batch = random_batch(1, rows=8)
    batch["loss_weights"][::4] *= 20.0  # the rows of one micro-batch weigh more than the others
    objective = functools.partial(next_token_objective, z_loss=1e-3)
    with jax.set_mesh(make_mesh(MeshConfig())):
        run = jax.jit(
            lambda params, batch, parts: accumulate(objective, graphdef, params, batch, parts), static_argnums=2
        )
        (whole, whole_grads), (parts, part_grads) = run(params, batch, 1), run(params, batch, 4)
    np.testing.assert_allclose(parts["loss"] / parts["weight"], whole["loss"] / whole["weight"], rtol=1e-6)
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(whole_grads)))
    difference = np.sqrt(
        sum(float(jnp.sum((a - b) ** 2)) for a, b in zip(jax.tree.leaves(part_grads), jax.tree.leaves(whole_grads)))
    )
    assert difference <= 1e-5 * norm
