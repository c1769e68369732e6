"""Norms, rotary positions and MLPs against formulas written out by hand, and the scale of fresh parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.config import Gated, LayerNorm, LinearScaling, Llama3Scaling, ModelConfig, Plain, RMSNorm, Rotary
from models.layers import GatedMLP, Linear, Norm, PlainMLP, rotary_frequencies, rotary_table, rotate

CONFIG = ModelConfig(
    vocab_size=32,
    num_layers=8,
    embed_dim=256,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_dim=512,
    dtype="float32",
)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_rms_norm_is_the_formula_with_and_without_offset_and_scale():
    x, w = draw(3, 5, 16), draw(16, seed=1)
    root = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)
    for config, factor in ((RMSNorm(), w), (RMSNorm(offset=True), 1 + w), (RMSNorm(scale=False), 1.0)):
        norm = Norm(16, config)
        np.testing.assert_allclose(norm(jnp.array(x)), root, rtol=1e-5, atol=1e-6)  # fresh: the identity
        if norm.scale is not None:
            norm.scale.set_value(jnp.array(w))
        np.testing.assert_allclose(norm(jnp.array(x)), root * factor, rtol=1e-5, atol=1e-6)
    assert not jax.tree.leaves(nnx.state(Norm(16, RMSNorm(scale=False))))


def test_layer_norm_is_the_formula():
    x, w, b = draw(4, 16) + 3.0, draw(16, seed=1), draw(16, seed=2)
    norm = Norm(16, LayerNorm())
    norm.scale.set_value(jnp.array(w))
    norm.bias.set_value(jnp.array(b))
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w + b
    np.testing.assert_allclose(norm(jnp.array(x)), expected, rtol=1e-4, atol=1e-5)


def test_a_norm_of_bfloat16_is_computed_in_float32():
    x = jnp.array(draw(64, 256) * 100, jnp.bfloat16)
    ours = Norm(256, RMSNorm())(x)
    exact = Norm(256, RMSNorm())(x.astype(jnp.float32))
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours, exact.astype(jnp.bfloat16))


def test_rotation_keeps_lengths_and_makes_scores_depend_on_distance_only():
    q, k = (jnp.array(draw(1, 1, 1, 32, seed=s)) for s in (1, 2))

    def score(place: int, distance: int) -> float:
        at = lambda x, p: rotate(x, rotary_table(Rotary(), 32, jnp.full((1, 1), p)))  # noqa: E731
        return float(jnp.vdot(at(q, place + distance), at(k, place)))

    np.testing.assert_allclose(score(0, 7), score(900, 7), rtol=1e-3)
    assert abs(score(0, 7) - score(0, 8)) > 1e-2
    turned = rotate(q, rotary_table(Rotary(), 32, jnp.full((1, 1), 123)))
    np.testing.assert_allclose(jnp.linalg.norm(turned), jnp.linalg.norm(q), rtol=1e-6)


def test_rotation_pairs_halves_and_leaves_the_rest_of_a_partly_rotated_head():
    x = jnp.array(draw(1, 3, 2, 16))
    turned = rotate(x, rotary_table(Rotary(fraction=0.5), 16, jnp.array([[0, 1, 2]])))
    np.testing.assert_array_equal(turned[..., 8:], x[..., 8:])
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])  # position 0 does not turn
    angle = 2.0  # first pair at position 2 turns by 2 radians; it is dims 0 and 4
    expected = x[0, 2, :, 0] * np.cos(angle) - x[0, 2, :, 4] * np.sin(angle)
    np.testing.assert_allclose(turned[0, 2, :, 0], expected, rtol=1e-5, atol=1e-6)


def test_scaled_frequencies_keep_fast_pairs_and_divide_slow_ones():
    plain = rotary_frequencies(Rotary(theta=500_000.0), 128)
    stretched = rotary_frequencies(Rotary(theta=500_000.0, scaling=Llama3Scaling(factor=8.0)), 128)
    ratio = np.asarray(plain / stretched)
    assert ratio[0] == 1.0 and ratio[-1] == pytest.approx(8.0)
    assert (np.diff(ratio) >= -1e-6).all() and ((ratio > 1.01) & (ratio < 7.9)).any()
    divided = rotary_frequencies(Rotary(theta=500_000.0, scaling=LinearScaling(factor=4.0)), 128)
    np.testing.assert_allclose(divided, plain / 4.0, rtol=1e-6)


def test_mlps_are_their_formulas():
    x = jnp.array(draw(2, 3, CONFIG.embed_dim))
    gated = GatedMLP(CONFIG, Gated(), rngs=nnx.Rngs(0))
    kernel = {name: np.asarray(getattr(gated, name).kernel.get_value()) for name in ("gate", "up", "down")}
    gate = x @ kernel["gate"]
    expected = (gate * jax.nn.sigmoid(gate) * (x @ kernel["up"])) @ kernel["down"]
    np.testing.assert_allclose(gated(x), expected, rtol=1e-4, atol=1e-5)
    plain = PlainMLP(CONFIG, Plain(bias=True), rngs=nnx.Rngs(0))
    plain.up.bias.set_value(jnp.array(draw(CONFIG.mlp_dim)))
    inner = jax.nn.gelu(x @ plain.up.kernel.get_value() + plain.up.bias.get_value(), approximate=True)
    np.testing.assert_allclose(plain(x), inner @ plain.down.kernel.get_value(), rtol=1e-4, atol=1e-5)


def test_fresh_projections_have_the_documented_spread():
    into = Linear(1024, 512, axes=("embed", "mlp"), rngs=nnx.Rngs(0)).kernel.get_value()
    assert float(jnp.std(into)) == pytest.approx(1024**-0.5, rel=0.02)
    assert float(jnp.max(jnp.abs(into))) < 2.3 * 1024**-0.5
    back = GatedMLP(CONFIG, Gated(), rngs=nnx.Rngs(0)).down.kernel.get_value()
    assert float(jnp.std(back)) == pytest.approx(512**-0.5 / np.sqrt(2 * CONFIG.num_layers), rel=0.02)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "float16"}, "bfloat16"),
        ({"num_kv_heads": 3}, "multiple"),
        ({"num_layers": 0}, "num_layers"),
        ({"pattern": ()}, "Block"),
    ],
)
def test_a_config_that_cannot_be_is_refused_with_a_sentence(changes: dict, words: str):
    settings = {name: getattr(CONFIG, name) for name in ("vocab_size", "num_layers", "embed_dim", "num_heads")}
    settings |= {name: getattr(CONFIG, name) for name in ("num_kv_heads", "head_dim", "mlp_dim")}
    with pytest.raises(ValueError, match=words):
        ModelConfig(**(settings | changes))
