"""Every kernel against the plain formula on packed rows, forward and gradient; how one is chosen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import AttentionShape, attention, choose_kernel
from models.kernels.blockwise import blockwise_attention
from models.kernels.cudnn import HOPPER_AND_LATER, check_offsets, packed_attention, segment_layout
from models.kernels.dense import masked_attention, visible
from models.sharding import MeshConfig, make_mesh

BATCH, LENGTH, HEADS, KV_HEADS, HEAD_DIM = 2, 128, 4, 2, 16
SEGMENTS = np.stack(
    [np.r_[np.full(50, 1), np.full(45, 2), np.full(33, 0)], np.r_[np.full(15, 1), np.full(100, 2), np.full(13, 3)]]
).astype(np.int32)
SETTINGS = [
    {"window": None, "softcap": None},
    {"window": 20, "softcap": None},
    {"window": None, "softcap": 5.0},
    {"window": 20, "softcap": 5.0},
]


def inputs(batch: int = BATCH, length: int = LENGTH) -> tuple[jax.Array, ...]:
    draw = np.random.default_rng(0).standard_normal
    shapes = ((batch, length, heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS))
    return tuple(jnp.array(draw(shape), jnp.float32) for shape in shapes)


def by_hand(q, k, v, segments, window=None, softcap=None) -> np.ndarray:
    """Token by token, in numpy: what a query attends to, written as loops."""
    out = np.zeros(q.shape, np.float64)
    for row, query, head in np.ndindex(q.shape[:3]):
        keys = [
            key
            for key in range(query + 1)
            if segments[row, key] == segments[row, query] and (window is None or query - key < window)
        ]
        scores = np.array([q[row, query, head] @ k[row, key, head // 2] for key in keys], np.float64) * 0.25
        scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
        weights = np.exp(scores - scores.max())
        out[row, query, head] = (weights / weights.sum()) @ v[row, keys, head // 2]
    return out


def output_and_gradients(function, *arrays):
    """Of (loss, output); the loss is a sum of 32,768 terms that cancel, so its own rounding says nothing."""
    (_, output), gradients = jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2), has_aux=True))(*arrays)
    return output, *gradients


def held_to_dense(kernel, settings: dict, atol: float) -> None:
    q, k, v, upstream = inputs()

    def loss(run):
        def of(q, k, v):
            out = run(q, k, v)
            return jnp.vdot(out, upstream), out

        return of

    plain = loss(
        lambda q, k, v: attention(q, k, v, segment_ids_BT=jnp.array(SEGMENTS), scale=0.25, kernel="dense", **settings)
    )
    for ours, reference in zip(output_and_gradients(loss(kernel), q, k, v), output_and_gradients(plain, q, k, v)):
        np.testing.assert_allclose(ours, reference, atol=atol, rtol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS)
def test_dense_is_the_formula_token_by_token(settings: dict):
    q, k, v, _ = inputs(length=40)
    segments = SEGMENTS[:, 30:70]
    ours = attention(q, k, v, segment_ids_BT=jnp.array(segments), scale=0.25, kernel="dense", **settings)
    expected = by_hand(*(np.asarray(x) for x in (q, k, v)), segments, **settings)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS)
def test_blockwise_equals_dense_forward_and_backward(settings: dict):
    run = lambda q, k, v: blockwise_attention(  # noqa: E731
        q, k, v, jnp.array(SEGMENTS), scale=0.25, block=48, **settings
    )
    held_to_dense(run, settings, atol=2e-5)


@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[3]])
def test_splash_equals_dense_forward_and_backward(settings: dict):
    run = lambda q, k, v: attention(  # noqa: E731
        q, k, v, segment_ids_BT=jnp.array(SEGMENTS), scale=0.25, kernel="splash", **settings
    )
    held_to_dense(run, settings, atol=1e-4)


def test_splash_on_a_mesh_equals_splash_alone():
    q, k, v, _ = inputs(batch=4)
    run = jax.jit(
        lambda q, k, v: attention(
            q, k, v, segment_ids_BT=jnp.array(np.tile(SEGMENTS, (2, 1))), scale=0.25, kernel="splash"
        )
    )
    alone = run(q, k, v)
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        np.testing.assert_allclose(jax.jit(run)(q, k, v), alone, atol=1e-6)


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("kernel", ["dense", "blockwise", "splash"])
def test_a_sequence_that_is_split_over_devices_gives_what_one_device_gives(kernel: str, window: int | None):
    q, k, v, upstream = inputs(length=256)
    segments = jnp.array(np.concatenate([SEGMENTS, SEGMENTS[::-1] + 2], axis=1))

    def loss(q, k, v):
        out = attention(q, k, v, segment_ids_BT=segments, scale=0.25, kernel=kernel, window=window)
        return jnp.vdot(out, upstream), out

    alone = output_and_gradients(loss, q, k, v)
    with jax.set_mesh(make_mesh(MeshConfig(data=2, context=2, tensor=2))):
        for ours, reference in zip(output_and_gradients(loss, q, k, v), alone):
            np.testing.assert_allclose(ours, reference, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["dense", "blockwise"])
def test_padding_gives_no_nan_in_values_or_gradients(kernel: str):
    q, k, v, upstream = inputs(length=64)
    padding = jnp.zeros((BATCH, 64), jnp.int32)

    def loss(q, k, v):
        return jnp.vdot(attention(q, k, v, segment_ids_BT=padding, scale=0.25, kernel=kernel), upstream)

    results = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(q, k, v)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(results))


def test_blockwise_memory_grows_with_the_sequence_and_not_with_its_square():
    def temporaries(length: int, kernel: str) -> int:
        q, k, v = (jax.ShapeDtypeStruct((1, length, heads, 16), jnp.float32) for heads in (4, 2, 2))
        segments = jax.ShapeDtypeStruct((1, length), jnp.int32)
        loss = lambda q, k, v, s: jnp.sum(attention(q, k, v, segment_ids_BT=s, scale=0.25, kernel=kernel))  # noqa: E731
        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, v, segments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    long = temporaries(4096, "blockwise")
    assert long < 2.6 * temporaries(2048, "blockwise")
    assert long < temporaries(4096, "dense") / 4


SHAPE = AttentionShape(queries=4096, keys=4096, num_heads=8, num_kv_heads=2, head_dim=128, dtype="bfloat16")


def changed(**changes: object) -> AttentionShape:
    return AttentionShape(**(vars(SHAPE) | changes))


@pytest.mark.parametrize(
    ("shape", "platform", "name"),
    [
        (SHAPE, ("tpu", "TPU v6 lite"), "splash"),
        (changed(queries=4100, keys=4100), ("tpu", "TPU v6 lite"), "blockwise"),
        (SHAPE, ("gpu", "NVIDIA H100 80GB HBM3"), "cudnn_packed"),
        (SHAPE, ("gpu", "NVIDIA A100-SXM4-80GB"), "cudnn"),
        (changed(softcap=50.0), ("gpu", "NVIDIA H100 80GB HBM3"), "blockwise"),
        (changed(dtype="float32"), ("gpu", "NVIDIA H100 80GB HBM3"), "blockwise"),
        (SHAPE, ("cpu", "cpu"), "blockwise"),
    ],
)
def test_each_backend_gets_its_kernel_and_a_reason(shape: AttentionShape, platform: tuple[str, str], name: str):
    choice = choose_kernel(shape, platform=platform)
    assert choice.name == name and len(choice.reason) > 10
    if shape.queries == 4100:
        assert "128" in choice.reason  # says why the fused kernel was passed over
    if shape.softcap is not None:
        assert "soft cap" in choice.reason


@pytest.mark.parametrize(
    ("kernel", "shape", "words"),
    [
        ("cudnn_packed", SHAPE, "this is a cpu"),
        ("cudnn", SHAPE, "this is a cpu"),
        ("splash", changed(queries=100, keys=100), "multiple of 128"),
    ],
)
def test_a_kernel_that_cannot_be_honoured_is_refused(kernel: str, shape: AttentionShape, words: str):
    with pytest.raises(ValueError, match=words):
        choose_kernel(shape, kernel, platform=("cpu", "cpu"))


def test_segment_layout_lists_every_run_and_counts_those_that_do_not_fit():
    segments = jnp.array([[1, 1, 2, 2, 2, 0], [1, 2, 3, 3, 3, 3]], jnp.int32)
    lengths, first, runs = segment_layout(segments, 4)
    assert lengths.reshape(-1).tolist() == [2, 3, 1, 1, 1, 4, 0, 0]
    assert first.reshape(-1).tolist() == [0, 2, 5, 6, 7, 8, 12, 12]
    assert int(runs) == 6
    assert int(segment_layout(segments, 2)[2]) == 6  # more than the 4 places there are


@pytest.mark.parametrize("kernel", ["cudnn", "cudnn_packed"])
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_cudnn_equals_the_plain_formula_forward_and_backward(kernel: str, window: int | None, head_dim: int):
    """In the relative error of each whole array: bfloat16 rounding alone gives about 0.005."""
    if jax.default_backend() != "gpu":
        pytest.skip("no GPU here, so cuDNN's kernels are not run; JAX_PLATFORMS=cuda,cpu shows the tests one")
    kind = jax.devices()[0].device_kind
    if kernel == "cudnn_packed" and not any(name in kind for name in HOPPER_AND_LATER):
        pytest.skip(f"packed rows need Hopper or later, and this is {kind!r}")
    draw, length, scale = np.random.default_rng(0).standard_normal, 256, head_dim**-0.5
    q, k, v, upstream = (jnp.asarray(draw((2, length, heads, head_dim)), jnp.bfloat16) for heads in (4, 2, 2, 4))
    segments = jnp.asarray(np.repeat([[1, 2, 3, 0], [1, 1, 2, 2]], length // 4, axis=1), jnp.int32)

    def ours(q, k, v):
        out = attention(q, k, v, segment_ids_BT=segments, scale=scale, window=window, kernel=kernel)
        return jnp.vdot(out.astype(jnp.float32), upstream.astype(jnp.float32)), out

    def plain(q, k, v):
        seen = visible(segments, segments, None, window)
        out = masked_attention(*(one.astype(jnp.float32) for one in (q, k, v)), seen, scale=scale, softcap=None)
        return jnp.vdot(out, upstream.astype(jnp.float32)), out

    out, *gradients = output_and_gradients(ours, q, k, v)
    expected, *expected_gradients = output_and_gradients(plain, q, k, v)
    for one, other in zip([out, *gradients], [expected, *expected_gradients]):
        one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
        assert np.linalg.norm(one - other) < 0.02 * np.linalg.norm(other)


def test_more_queries_than_int32_offsets_reach_are_refused():
    check_offsets((1, 2**13, 2**9, 2**8))
    shapes = [jax.ShapeDtypeStruct((2, 2**13, heads, 2**9), jnp.bfloat16) for heads in (2**8, 2, 2)]
    segments = jax.ShapeDtypeStruct((2, 2**13), jnp.int32)
    run = functools.partial(packed_attention, scale=1.0, window=None, softcap=None)
    with pytest.raises(ValueError, match=r"B x T x N x H = 2,147,483,648 elements: raise train\.grad_accum_steps"):
        jax.eval_shape(run, *shapes, segments)
