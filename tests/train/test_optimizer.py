"""Schedules reach their ends, decay spares vectors, Muon takes matrices alone, moments may rest in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.optimizer import AdamW, Muon, WarmupCosine, WarmupStableDecay, make_optimizer, make_schedule

AXES = {
    "embedding": ("vocab", "embed"),
    "norm": ("norm",),
    "layers": {"kernel": ("layers", "embed", "mlp"), "bias": ("layers", "mlp")},
}


def params():
    keys = iter(jax.random.split(jax.random.key(0), 4))
    shapes = {"embedding": (16, 8), "norm": (8,), "layers": {"kernel": (2, 8, 12), "bias": (2, 12)}}
    return jax.tree.map(
        lambda shape: jax.random.normal(next(keys), shape), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )


@pytest.mark.parametrize("decay_fraction, stable", [(1.0, 10), (0.2, 82)])
def test_warmup_stable_decay_ends_on_a_straight_line_to_zero(decay_fraction, stable):
    schedule = make_schedule(WarmupStableDecay(warmup_steps=10, decay_fraction=decay_fraction), 100)
    values = np.array([float(schedule(jnp.asarray(step))) for step in range(101)])
    np.testing.assert_allclose(values[:10], np.arange(1, 11) / 10)
    np.testing.assert_allclose(values[10:stable], 1.0)
    np.testing.assert_allclose(np.diff(values[stable:]), -1 / (100 - stable), atol=1e-6)
    assert values[100] == 0.0


def test_warmup_cosine_ends_at_its_final_fraction():
    schedule = make_schedule(WarmupCosine(warmup_steps=10, final_fraction=0.1), 100)
    values = [float(schedule(jnp.asarray(step))) for step in (0, 9, 10, 55, 100)]
    np.testing.assert_allclose(values, [0.1, 1.0, 1.0, 0.55, 0.1], atol=1e-6)


@pytest.mark.parametrize(
    "config", [AdamW(weight_decay=0.5, learning_rate=0.1), Muon(weight_decay=0.5, learning_rate=0.1)]
)
def test_weight_decay_moves_matrices_and_no_vectors(config):
    values = params()
    tx = make_optimizer(config, AXES)
    zeros = jax.tree.map(jnp.zeros_like, values)
    updates, _ = tx.update(zeros, tx.init(values), values)
    np.testing.assert_allclose(updates["layers"]["kernel"], -0.05 * values["layers"]["kernel"], rtol=1e-5)
    assert not updates["norm"].any() and not updates["layers"]["bias"].any()
    assert updates["embedding"].any() == isinstance(config, AdamW)  # Muon's other half is Adam without decay


def test_adamw_is_optax_adamw():
    values, grads = params(), jax.tree.map(lambda x: x * 0.3, params())
    ours = make_optimizer(AdamW(learning_rate=0.01, b1=0.9, b2=0.95, weight_decay=0.0), AXES)
    theirs = optax.adamw(0.01, b1=0.9, b2=0.95, weight_decay=0.0)
    got, _ = ours.update(grads, ours.init(values), values)
    want, _ = theirs.update(grads, theirs.init(values), values)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)


def test_muon_makes_each_layers_update_orthogonal_with_the_size_of_adams():
    values = params()
    tx = make_optimizer(Muon(learning_rate=1.0, consistent_rms=0.2), AXES)
    updates, _ = tx.update(values, tx.init(values), values)
    for update in updates["layers"]["kernel"]:  # [8, 12]
        singular = np.linalg.svd(update, compute_uv=False) / (0.2 * np.sqrt(12))
        assert singular.min() > 0.6 and singular.max() < 1.3  # five Newton-Schulz steps reach 0.7 to 1.2
    adam = optax.adamw(Muon().adam_learning_rate, b1=0.9, b2=0.95, weight_decay=0.0, nesterov=True)
    want, _ = adam.update(values, adam.init(values), values)
    np.testing.assert_allclose(updates["embedding"], want["embedding"], rtol=1e-5)


def test_bfloat16_moments_take_half_the_memory_and_train_alike():
    def train(moment_dtype):
        tx = make_optimizer(AdamW(learning_rate=1e-2, moment_dtype=moment_dtype), AXES)
        values = params()
        state = tx.init(values)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim)
        for _ in range(4):
            updates, state = tx.update(values, state, values)  # the gradient of half the squared norm
            values = optax.apply_updates(values, updates)
        return size, values

    (whole, exact), (half, rounded) = train("float32"), train("bfloat16")
    assert 2 * half == whole
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), rounded, exact)
    assert not np.array_equal(rounded["embedding"], exact["embedding"])
    with pytest.raises(ValueError, match=r"b2 of at most 0\.99"):
        AdamW(moment_dtype="bfloat16", b2=0.999)
