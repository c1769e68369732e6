"""The step: bad steps change nothing and are counted, EMA and clipping do what they say, it compiles once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.tiny import Trainer, random_batch
from train.loss import next_token_objective

CLIP = 0.05  # below every gradient norm of the tiny model


@pytest.fixture(scope="module")
def trainer():
    """One compiled step for the tests that only look at what it does to the state."""
    return Trainer(ema_decay=0.75, clip_norm=CLIP, num_steps=100)


def snapshot(trainer):
    return jax.tree.map(np.array, (trainer.state.params, trainer.state.opt_state, trainer.state.ema))


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


def test_gradients_are_clipped_to_the_global_norm(trainer):
    """Adam's first moment after one step is (1 - b1) times the clipped gradient."""
    norm = trainer.run(random_batch(0))["gradient_norm"]
    moments = trainer.state.opt_state[0].mu
    clipped = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(moments))) / (1 - 0.9)
    assert norm > 2 * CLIP
    assert clipped == pytest.approx(CLIP, rel=1e-5)


def test_moving_average_follows_the_parameters(trainer):
    mean = jax.tree.map(np.array, trainer.state.ema)
    for step in range(3):
        trainer.run(random_batch(step))
        mean = jax.tree.map(lambda m, p: 0.75 * m + 0.25 * np.array(p), mean, trainer.state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), trainer.state.ema, mean)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing_but_the_counts(trainer, poison):
    done, skipped = int(trainer.state.step), int(trainer.state.skipped)
    before, norm_mean = snapshot(trainer), float(trainer.state.norm_mean)
    bad = random_batch(1)
    bad["loss_weights"][0, 0] = poison
    metrics = trainer.run(bad)
    assert metrics["skipped"] == 1.0 and metrics["skipped_total"] == skipped + 1
    assert same(before, snapshot(trainer)) and norm_mean == float(trainer.state.norm_mean)
    assert int(trainer.state.step) == done + 1 and int(trainer.state.skipped) == skipped + 1
    metrics = trainer.run(random_batch(2))
    assert metrics["skipped"] == 0.0 and np.isfinite(metrics["loss"]) and not same(before, snapshot(trainer))


def test_padding_alone_is_no_accident(trainer):
    batch = random_batch(0)
    batch["loss_weights"][:] = 0.0
    metrics = trainer.run(batch)
    assert metrics["loss"] == 0.0 and metrics["gradient_norm"] == 0.0 and metrics["skipped"] == 0.0


def test_the_step_compiles_once_and_its_state_is_donated(trainer):
    before = trainer.state.params["embedding"]
    trainer.run(random_batch(0))
    assert trainer.step._cache_size() == 1 and before.is_deleted()


def test_a_spike_is_skipped_once_norms_have_settled():
    def scaled(model, batch):
        total, sums = next_token_objective(model, batch)
        return total * jnp.max(batch["positions"][:, -1]), sums

    trainer = Trainer(objective=scaled, spike_factor=3.0, num_steps=100, clip_norm=None)
    for step in range(52):
        batch = random_batch(step % 3)
        batch["positions"][:, -1] = 100 if step == 10 else 1
        assert trainer.run(batch)["skipped"] == 0.0  # step 10 spikes too, before norms have settled
    batch["positions"][:, -1] = 100
    before = snapshot(trainer)
    assert trainer.run(batch)["skipped"] == 1.0 and same(before, snapshot(trainer))
