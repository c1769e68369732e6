"""NF4 against bitsandbytes' algorithm, written here in numpy; sharded, saved and restored; int8; the gradient."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec
from scipy.stats import norm

from models.checkpoints.bitsandbytes import load_bitsandbytes, save_bitsandbytes
from models.checkpoints.load import load_checkpoint
from models.checkpoints.names import LLAMA
from models.checkpoints.tuned import load_tuned
from models.config import Execution, ModelConfig
from models.lora import LoRA, add_lora
from models.quantize import (
    NF4,
    NF4_VALUES,
    Int8Weights,
    dequantize,
    dequantized,
    dynamic_map,
    product,
    quantize,
    quantize_model,
    unpack,
)
from models.sharding import MeshConfig, make_mesh, param_shardings
from models.transformer import CausalLM, unstacked
from models.tuning import Tuning


def kernel(in_dim=192, out_dim=80, seed=0):
    return np.random.default_rng(seed).normal(size=(in_dim, out_dim)).astype(np.float32)


# ---------------------------------------------------------------------------------- bitsandbytes' algorithm in numpy


def reference_nf4(weight_OI, block=64):
    """Flat blocks of a row-major [O, I] weight: (packed bytes, absmax, codes), as bitsandbytes stores them."""
    flat = weight_OI.reshape(-1, block)
    absmax = np.abs(flat).max(axis=1)
    table = np.asarray(NF4_VALUES, np.float32)
    codes = np.searchsorted((table[1:] + table[:-1]) / 2, (flat / absmax[:, None]).reshape(-1)).astype(np.uint8)
    return (codes[0::2] << 4) | codes[1::2], absmax, codes


def reference_map(signed=True):
    """create_dynamic_map: seven decades, the means of evenly spaced boundaries in each."""
    values = []
    for i in range(7):
        boundaries = np.linspace(0.1, 1, 2 ** (i if signed else i + 1) + 1)
        means = (boundaries[:-1] + boundaries[1:]) / 2
        values += list(10.0 ** (i - 6) * means)
        values += list(-(10.0 ** (i - 6)) * means) if signed else []
    return np.sort(np.asarray([*values, 0.0, 1.0], np.float32))


def reference_scales(absmax):
    """The second quantisation: (codes, absmax of groups of 256, offset)."""
    offset = absmax.mean()
    centred = absmax - offset
    codes, second = [], []
    for start in range(0, len(centred), 256):
        group = centred[start : start + 256]
        second.append(np.abs(group).max())
        codes.append(np.abs((group / second[-1])[:, None] - reference_map()[None]).argmin(axis=1))
    return np.concatenate(codes).astype(np.uint8), np.asarray(second, np.float32), offset


def test_the_codebook_is_the_quantiles_of_a_normal():
    upper = norm.ppf(np.linspace(0.9677083, 0.5, 9)[:-1])
    lower = -norm.ppf(np.linspace(0.9677083, 0.5, 8)[:-1])
    values = np.sort([*upper, *lower, 0.0])
    np.testing.assert_allclose(NF4_VALUES, values / values.max(), atol=2e-7)


@pytest.mark.parametrize("signed", [True, False])
def test_the_dynamic_map_is_the_one_of_bitsandbytes(signed):
    values = dynamic_map(signed)
    assert len(set(values)) == 256 and values[-1] == 1.0
    np.testing.assert_allclose(values, reference_map(signed), rtol=1e-6)
    assert values[0] == (np.float32(-0.99296874) if signed else 0.0)


def test_packing_codes_and_scales_are_those_of_bitsandbytes():
    kernel_IO = kernel()
    in_dim, out_dim = kernel_IO.shape
    packed, absmax, codes = reference_nf4(np.ascontiguousarray(kernel_IO.T))
    plain = quantize(jnp.asarray(kernel_IO), NF4(double_quant=False))
    assert np.array_equal(np.asarray(plain["packed"]).T.reshape(-1), packed)
    assert np.array_equal(np.asarray(unpack(plain["packed"])).T.reshape(-1), codes)
    assert np.array_equal(np.asarray(plain["scales"]).T.reshape(-1), absmax)

    parts = quantize(jnp.asarray(kernel_IO), NF4())
    scale_codes, second, offset = reference_scales(absmax)
    np.testing.assert_allclose(parts["mean"], offset, rtol=1e-6)
    np.testing.assert_allclose(parts["group_scales"], second, rtol=1e-5)
    assert (np.asarray(parts["scale_codes"]).T.reshape(-1) == scale_codes).mean() > 0.99  # the mean's last bit
    reference = np.asarray(NF4_VALUES, np.float32)[codes].reshape(-1, 64)
    reference = reference * (reference_map()[scale_codes] * np.repeat(second, 256)[: len(absmax)] + offset)[:, None]
    np.testing.assert_allclose(
        np.asarray(dequantize(parts, NF4())).T, reference.reshape(out_dim, in_dim), rtol=1e-4, atol=1e-4
    )


def test_the_bytes_are_those_that_bitsandbytes_gave():
    """bitsandbytes 0.50.2 on a CPU: quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)."""
    weight_OI = np.random.default_rng(0).normal(size=(80, 192)).astype(np.float32)
    parts = quantize(jnp.asarray(weight_OI.T), NF4())
    digest = lambda part: hashlib.sha256(np.ascontiguousarray(np.asarray(part).T).tobytes()).hexdigest()[:16]  # noqa: E731
    assert (digest(parts["packed"]), digest(parts["scale_codes"])) == ("c4e6e0e6fa860ed0", "1da6c0cad9516d41")
    assert float(parts["mean"]) == pytest.approx(2.595776319503784, rel=1e-6)


def test_bits_a_weight_and_the_error_that_the_second_quantisation_adds():
    kernel_IO = jnp.asarray(kernel(2048, 1024))
    error = {}
    for form, bits in ((NF4(), 4.127), (NF4(double_quant=False), 4.5), (Int8Weights(block=64), 8.5)):
        parts = quantize(kernel_IO, form)
        assert 8 * sum(part.nbytes for part in parts.values()) / kernel_IO.size == pytest.approx(bits, abs=5e-4)
        error[form] = float(jnp.linalg.norm(dequantize(parts, form) - kernel_IO) / jnp.linalg.norm(kernel_IO))
    assert error[NF4()] == pytest.approx(0.092, abs=1e-3)  # of a Gaussian matrix
    assert error[NF4()] < 1.002 * error[NF4(double_quant=False)]
    assert error[Int8Weights(block=64)] < 0.007


def test_zero_columns_stay_zero():
    kernel_IO = jnp.asarray(kernel()).at[:, 3].set(0.0)
    for form in (NF4(double_quant=False), Int8Weights(), Int8Weights(block=64)):
        assert np.array_equal(dequantize(quantize(kernel_IO, form), form)[:, 3], np.zeros(192))


@pytest.mark.parametrize("form", [NF4(), Int8Weights()])
def test_the_product_and_its_gradient_are_those_of_the_float_matrix(form):
    parts = quantize(jnp.asarray(kernel()), form)
    whole = dequantize(parts, form)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 192)), jnp.float32)
    loss = lambda x, multiply: jnp.sum(jnp.sin(multiply(x)))  # noqa: E731
    ours = jax.value_and_grad(loss)(x, lambda x: product(x, parts, form))
    theirs = jax.value_and_grad(loss)(x, lambda x: x @ whole)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-4, atol=1e-4)


def test_no_float_copy_is_kept_for_the_backward_pass():
    parts = quantize(jnp.asarray(kernel()), NF4())
    _, backward = jax.vjp(lambda x: product(x, parts, NF4()), jnp.ones((5, 192)))
    kept = [leaf for leaf in jax.tree.leaves(backward) if hasattr(leaf, "dtype")]
    assert not any(leaf.size >= 192 * 80 for leaf in kept)


# --------------------------------------------------------------------------------------------------------- the model

CONFIG = ModelConfig(
    vocab_size=64,
    num_layers=2,
    embed_dim=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_dim=192,
    dtype="float32",
    execution=Execution(scan_unroll=1),
)
FORM = NF4(block=16)


def made(build):
    """What `build` makes, compiled as a whole: much faster than operation by operation."""
    graph = nnx.split(nnx.eval_shape(build))[0]
    return nnx.merge(graph, jax.jit(lambda: nnx.state(build()))())


@pytest.fixture(scope="module")
def base():
    return made(lambda: CausalLM(CONFIG, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def model(base):
    return made(lambda: add_lora(quantize_model(base, FORM), LoRA(targets="all-linear"), rngs=nnx.Rngs(1)))


@jax.jit
def run_split(graph_state):
    model = nnx.merge(*graph_state)
    inputs_BT = jnp.asarray(np.random.default_rng(0).integers(0, 64, (8, 12)))
    positions_BT = jnp.broadcast_to(jnp.arange(12), (8, 12))
    return model.logits(model(inputs_BT, jnp.ones_like(inputs_BT), positions_BT))


def run(model):
    return np.asarray(run_split(nnx.split(model)))


@pytest.mark.slow
def test_the_quantised_model_is_its_dequantised_self(base, model):
    np.testing.assert_allclose(run(model), run(made(lambda: dequantized(model))), atol=1e-5)
    np.testing.assert_allclose(run(unstacked(model)), run(model), atol=1e-5)
    assert 0.001 < np.abs(run(model) - run(base)).mean() < 0.1
    assert np.abs(run(made(lambda: quantize_model(base, Int8Weights()))) - run(base)).mean() < 0.01


def test_sharded_over_fsdp_and_tensor_packed_weights_and_adapters_keep_both_axes(model):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    graph, state = nnx.split(model)
    placed = jax.tree.map(jax.device_put, state, param_shardings(state, mesh))
    layers = nnx.merge(graph, placed).layers
    parts, adapter = layers.mlp.up.parts, layers.mlp.up.lora
    assert parts["packed"].get_value().sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert parts["scale_codes"].get_value().sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert adapter.a.get_value().sharding.spec == PartitionSpec(None, None, "fsdp", None)
    assert adapter.b.get_value().sharding.spec == PartitionSpec(None, None, None, "tensor")
    packed = parts["packed"].get_value()
    assert packed.addressable_shards[0].data.nbytes * 4 == packed.nbytes
    with jax.set_mesh(mesh):
        sharded = run(nnx.merge(graph, placed))
    np.testing.assert_allclose(sharded, run(model), atol=1e-5)


def test_saved_and_restored_the_logits_are_the_same_to_the_last_bit(model, tmp_path):
    from orbax.checkpoint import v1 as ocp

    graph, state = nnx.split(model)
    pure = nnx.to_pure_dict(state)
    with ocp.training.Checkpointer(tmp_path / "checkpoints") as checkpointer:
        checkpointer.save_checkpointables(1, {"params": pure})
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), pure)
        restored = checkpointer.load_checkpointables(1, {"params": abstract})["params"]
    assert restored["layers"]["mlp"]["up"]["parts"]["packed"].dtype == jnp.uint8
    assert np.array_equal(run(nnx.merge(graph, nnx.State(restored))), run(model))


@pytest.mark.parametrize("form", [NF4(), NF4(double_quant=False)])
def test_a_folder_in_bitsandbytes_format_gives_the_same_model_back(base, tmp_path, form):
    model = made(lambda: quantize_model(base, form))
    save_bitsandbytes(model, tmp_path)
    loaded = load_checkpoint(tmp_path, mesh=make_mesh(MeshConfig(tensor=2)), dtype="float32").model
    for ours, theirs in zip(jax.tree.leaves(nnx.state(loaded)), jax.tree.leaves(nnx.state(model))):
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    assert loaded.layers.mlp.up.parts["packed"].get_value().sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert loaded.layers.mlp.up.config == form


def test_tuning_starts_from_such_a_folder_without_quantising_again(base, tmp_path):
    model = made(lambda: quantize_model(base, NF4()))
    save_bitsandbytes(model, tmp_path)
    mesh = make_mesh(MeshConfig(fsdp=2))
    params, _ = load_tuned(tmp_path, CONFIG, mesh, Tuning(lora=LoRA(), quantize=NF4()), seed=0)
    assert params["layers"]["attention"]["q"]["lora"]["a"].shape == (2, 1, 64, 8)
    for name, part in model.layers.mlp.up.parts.items():
        assert np.array_equal(params["layers"]["mlp"]["up"]["parts"][name], part.get_value())
    with pytest.raises(ValueError, match=r"is stored as NF4\(block=64, double_quant=True\): set quantize to that"):
        load_tuned(tmp_path, CONFIG, mesh, Tuning(lora=LoRA()), seed=0)


def test_a_folder_that_is_quantised_in_another_way_is_refused_in_one_line(base, tmp_path):
    model = made(lambda: quantize_model(base, NF4(double_quant=False)))
    with pytest.raises(ValueError, match=r"expected blocks of 64 .*, double quantisation True"):
        save_bitsandbytes(model, tmp_path)
        load_bitsandbytes(tmp_path, CONFIG, NF4(), LLAMA, mesh=None, param_dtype=None)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"quantised by 'gptq' .* expected bitsandbytes' nf4"):
        load_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="quantise the model with NF4"):
        save_bitsandbytes(base, tmp_path)
