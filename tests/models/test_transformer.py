"""Equalities of the whole model: packing, causality, layer patterns, layouts of the layers, and the cache."""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.cache import KVCache, init_cache
from models.config import Attention, Block, Embedding, Execution, LayerNorm, ModelConfig, Plain, RMSNorm, Rotary
from models.transformer import CausalLM, unstacked

CONFIG = ModelConfig(
    vocab_size=61,
    num_layers=3,
    embed_dim=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=48,
    attention=Attention(qk_norm=RMSNorm()),
    pattern=(Block(window=6), Block(rotary=None)),  # 3 layers: a whole group and one layer over
    dtype="float32",
    execution=Execution(scan_unroll=1),
)
VARIANTS = {
    "llama": CONFIG,
    "gpt2": replace(
        CONFIG,
        norm=LayerNorm(),
        mlp=Plain(bias=True),
        attention=Attention(qkv_bias=True, out_bias=True),
        embedding=Embedding(learned_positions=True, max_positions=32),
        pattern=(Block(rotary=None),),
    ),
    "gemma": replace(
        CONFIG,
        norm=RMSNorm(offset=True, sandwich=True),
        attention=Attention(softcap=50.0, query_scale=0.2),
        embedding=Embedding(tied=False, scale=32**0.5, logit_softcap=30.0, norm=RMSNorm()),
        pattern=(Block(window=6), Block(), Block(rotary=Rotary(theta=1e6))),
    ),
}
LENGTHS = (10, 13, 6)  # documents of a packed row; 3 places of padding follow


@pytest.fixture(scope="module")
def packed() -> tuple[jax.Array, jax.Array, jax.Array]:
    tokens = np.random.default_rng(0).integers(0, 61, (2, 32))
    segments = np.concatenate([np.full(n, i + 1) for i, n in enumerate((*LENGTHS,))] + [np.zeros(3, int)])
    positions = np.concatenate([np.arange(n) for n in (*LENGTHS, 3)])
    return tuple(jnp.asarray(np.broadcast_to(x, (2, 32)), jnp.int32) for x in (tokens, segments, positions))


@functools.cache
def make(config: ModelConfig) -> CausalLM:
    return nnx.jit(lambda: CausalLM(config, rngs=nnx.Rngs(0)))()


@nnx.jit
def run(model: CausalLM, *batch: jax.Array) -> Any:
    return model(*batch)


def hidden(model: CausalLM, *batch: jax.Array) -> np.ndarray:
    return np.asarray(run(model, *batch))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_packed_row_equals_its_documents_one_by_one(name: str, packed: tuple):
    model = make(VARIANTS[name])
    inputs, segments, _ = packed
    counted = jnp.broadcast_to(jnp.arange(32), (2, 32))
    together = hidden(model, *packed)
    assert np.isfinite(together).all()
    start = 0
    for length in LENGTHS:  # each alone, at the start of a row
        own = jnp.pad(inputs[:, start : start + length], ((0, 0), (0, 32 - length)))
        alone = hidden(model, own, (jnp.arange(32) < length).astype(jnp.int32) * jnp.ones_like(segments), counted)
        np.testing.assert_allclose(together[:, start : start + length], alone[:, :length], atol=2e-5)
        start += length


@pytest.mark.parametrize("name", ["llama"])
def test_no_token_changes_what_stands_before_it(name: str, packed: tuple):
    model = make(VARIANTS[name])
    inputs, segments, positions = packed
    other = inputs.at[:, 17].set((inputs[:, 17] + 1) % 61)
    before, after = hidden(model, *packed), hidden(model, other, segments, positions)
    changed = np.abs(before - after).max(axis=(0, 2)) > 0
    assert changed[17:23].all()  # the rest of its document
    assert not changed[:17].any() and not changed[23:].any()


@pytest.mark.parametrize(("name", "stacked"), [("llama", True), ("gemma", True), ("gpt2", False), ("gemma", False)])
def test_reading_with_a_cache_equals_the_full_forward_pass(name: str, stacked: bool, packed: tuple):
    config = VARIANTS[name]
    model = make(config)
    inputs = packed[0][:, :20]
    ones, positions = jnp.ones_like(inputs), jnp.broadcast_to(jnp.arange(20), inputs.shape)
    expected = hidden(model, inputs, ones, positions)
    reader = model if stacked else unstacked(model)
    np.testing.assert_allclose(hidden(reader, inputs, ones, positions), expected, atol=1e-5)

    # a prompt of 9 tokens for row 0 and of 6 for row 1, padded at the end; then token by token
    lengths = jnp.array([9, 6])
    valid = (jnp.arange(9) < lengths[:, None]).astype(jnp.int32)
    out, cache = run(reader, inputs[:, :9], valid, positions[:, :9], init_cache(config, 2, 24, stacked=stacked))
    np.testing.assert_allclose(out[0], expected[0, :9], atol=1e-5)
    np.testing.assert_allclose(out[1, :6], expected[1, :6], atol=1e-5)
    for _ in range(11):
        place = cache.length_B
        tokens = jnp.take_along_axis(inputs, place[:, None], axis=1)
        out, cache = run(reader, tokens, jnp.ones_like(tokens), place[:, None], cache)
        for row in range(2):
            np.testing.assert_allclose(out[row, 0], expected[row, int(place[row])], atol=1e-5)
    assert isinstance(cache, KVCache) and cache.length_B.tolist() == [20, 17]


def test_remat_and_unrolling_change_neither_values_nor_gradients(packed: tuple):
    config = replace(CONFIG, pattern=(Block(),), attention=Attention())
    _, state = nnx.split(make(config))

    def values(execution: Execution) -> list[jax.Array]:
        graph, _ = nnx.split(nnx.eval_shape(lambda: CausalLM(replace(config, execution=execution), rngs=nnx.Rngs(0))))

        def loss(state: nnx.State) -> jax.Array:
            model = nnx.merge(graph, state)
            return jnp.mean(jnp.square(model.logits(model(*packed))))

        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(state))

    plain = values(Execution(scan_unroll=0))
    for execution in (Execution(remat="full", scan_unroll=1), Execution(remat="dots", scan_unroll=1)):
        for ours, expected in zip(values(execution), plain):
            np.testing.assert_allclose(ours, expected, atol=1e-6, rtol=1e-5)


def test_a_scanned_program_does_not_grow_with_the_number_of_layers(packed: tuple):
    def size(num_layers: int) -> int:
        config = replace(CONFIG, num_layers=num_layers, execution=Execution(scan_unroll=1))
        model = nnx.eval_shape(lambda: CausalLM(config, rngs=nnx.Rngs(0)))
        graph, state = nnx.split(model)
        return len(jax.jit(lambda state: nnx.merge(graph, state)(*packed)).lower(state).as_text())

    assert size(16) < 1.05 * size(4)


def test_bfloat16_compute_keeps_float32_parameters_and_float32_logits(packed: tuple):
    model = make(replace(CONFIG, dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    out = run(model, *packed)
    assert out.dtype == jnp.bfloat16 and model.logits(out).dtype == jnp.float32
    exact = run(make(CONFIG), *packed)
    error = jnp.linalg.norm(out.astype(jnp.float32) - exact) / jnp.linalg.norm(exact)
    assert float(error) < 0.03


def test_logits_are_capped_and_use_the_table_when_tied(packed: tuple):
    tied = make(CONFIG)
    out = run(tied, *packed)
    np.testing.assert_allclose(tied.logits(out), out @ tied.embedding.get_value().T, atol=1e-5)
    capped = make(VARIANTS["gemma"])
    out = 100.0 * run(capped, *packed)
    raw = out @ capped.lm_head.kernel.get_value()
    assert float(jnp.max(jnp.abs(raw))) > 60.0
    np.testing.assert_allclose(capped.logits(out), 30.0 * jnp.tanh(raw / 30.0), atol=1e-4)


def test_layers_differ_and_a_period_is_found():
    kernels = make(CONFIG).layers.attention.q.kernel.get_value()
    assert kernels.shape == (3, 32, 32) and not np.allclose(kernels[0], kernels[1])
    assert CONFIG.period == 2
    assert replace(CONFIG, num_layers=7, pattern=(Block(), Block(), Block(rotary=None))).period == 3
    assert replace(CONFIG, pattern=(Block(), Block())).period == 1
