"""Adapters that began by changing their base, on the base as it was: PEFT has the same logits to 1e-5."""

import dataclasses
import json
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import pytest
from flax import nnx

from models.checkpoints.load import load_checkpoint
from models.checkpoints.peft import load_peft
from models.checkpoints.peft_save import save_peft
from models.checkpoints.save import save_hf
from models.lora import LoRA, add_lora, merge_lora
from models.low_rank import split_kernel
from models.original import on_original
from models.quantize import NF4, quantize_model, round_trip
from models.transformer import CausalLM
from tests.models.checkpoint_cases import tiny_model
from tests.models.test_peft import logits_of, peft, shaken, their_base, their_logits, torch

KINDS = {
    "pissa": LoRA(targets="all-linear", rank=4, alpha=12.0, init="pissa"),
    "pissa_rslora": LoRA(targets=("q", "down"), rank=4, alpha=3.0, rslora=True, init="pissa"),
    "olora": LoRA(targets="all-linear", rank=3, alpha=3.0, init="olora"),
    "olora_dora": LoRA(targets=("q", "up"), rank=4, dora=True, init="olora"),
    "pissa_norms": LoRA(targets=("v",), rank=4, init="pissa_fast", also_train=("final_norm",)),
}
SLOW = sorted(KINDS.keys() - {"pissa", "olora_dora"})


def adapters_moved(model: CausalLM, also: tuple[str, ...] = ()) -> CausalLM:
    """The model with its adapters moved, and what is trained whole: what training does."""
    graph, after = nnx.split(shaken(model))
    before = dict(nnx.to_flat_state(nnx.state(model)))
    trained = lambda path: any(name in ".".join(map(str, path)) for name in ("lora", *also))  # noqa: E731
    leaves = [(path, leaf if trained(path) else before[path]) for path, leaf in nnx.to_flat_state(after)]
    return nnx.merge(graph, nnx.from_flat_state(leaves))


@pytest.mark.parametrize(
    "kind", ["pissa", "olora_dora", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_peft_has_the_function_on_the_original_base(kind: str, tmp_path: Path) -> None:
    lora, base = dataclasses.replace(KINDS[kind], dropout=0.0), tiny_model()
    save_hf(base, tmp_path / "base")
    start = add_lora(base, lora, rngs=nnx.Rngs(0))
    tuned = adapters_moved(start, lora.also_train)
    plain, asked = on_original(tuned, base, start), dataclasses.replace(lora, init="kaiming")
    ours = logits_of(tuned)
    np.testing.assert_allclose(logits_of(plain), ours, atol=1e-5 * np.abs(ours).max())
    save_peft(plain, asked, tmp_path / "adapter", base=str(tmp_path / "base"))
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 2 * lora.rank and config["init_lora_weights"] is True
    theirs = their_logits(peft.PeftModel.from_pretrained(their_base(tmp_path / "base"), tmp_path / "adapter").eval())
    assert np.abs(ours - logits_of(base)).max() > 0.1
    np.testing.assert_allclose(theirs, ours, atol=1e-5 * np.abs(ours).max())
    again = load_peft(tmp_path / "adapter", load_checkpoint(tmp_path / "base").model)[0]
    np.testing.assert_allclose(logits_of(again), ours, atol=1e-5 * np.abs(ours).max())


def test_olora_begins_as_pefts(tmp_path: Path) -> None:
    base = tiny_model()
    save_hf(base, tmp_path)
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights="olora")
    theirs = peft.get_peft_model(their_base(tmp_path), settings)
    q = theirs.base_model.model.model.layers[1].self_attn.q_proj
    kernel = base.layers.attention.q.kernel.get_value()
    a, b, rest = split_kernel(kernel, 4, 2.0, "olora", jax.random.key(0), None)
    np.testing.assert_allclose(rest[1], q.base_layer.weight.detach().numpy().T, atol=1e-5)
    product = (q.lora_B["default"].weight @ q.lora_A["default"].weight).detach().numpy()
    np.testing.assert_allclose(a[1] @ b[1], product.T, atol=1e-5)
    assert torch.is_tensor(q.base_layer.weight)


@pytest.mark.parametrize("init", ["loftq", "pissa"])
def test_over_a_quantised_base_what_quantisation_lost_is_there_again(init: Literal["loftq", "pissa"]) -> None:
    base, form = tiny_model(), NF4(block=16)
    lora = LoRA(targets=("q", "down"), rank=8, dropout=0.0, init=init)
    made = add_lora(base, lora, rngs=nnx.Rngs(0), round_trip=round_trip(form))
    start, moved = quantize_model(made, form), quantize_model(adapters_moved(made), form)
    plain = on_original(moved, base, start)
    for part, name in (("attention", "q"), ("mlp", "down")):
        kernels = [kernel_of(merge_lora(model), part, name) for model in (plain, moved, start)]
        lost = kernel_of(base, part, name) - kernels[2]
        np.testing.assert_allclose(kernels[0] - kernels[1], lost, atol=1e-5)
        assert np.abs(lost).max() > 1e-2
    np.testing.assert_allclose(logits_of(on_original(start, base, start)), logits_of(base), atol=1e-4)


def kernel_of(model: CausalLM, part: str, name: str) -> np.ndarray:
    """A projection's matrices of all layers."""
    return np.asarray(getattr(getattr(model.layers, part), name).kernel.get_value())


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_base_in_16_bits_is_the_original_but_for_its_rounding(init: Literal["olora", "pissa"]) -> None:
    half, whole = (
        jax.tree.map(lambda values, dtype=dtype: values.astype("bfloat16").astype(dtype), nnx.state(tiny_model()))
        for dtype in ("bfloat16", "float32")
    )
    graph = nnx.graphdef(tiny_model())
    lora = LoRA(targets=("q",), rank=4, init=init, dropout=0.0)
    start = add_lora(nnx.merge(graph, half), lora, rngs=nnx.Rngs(0))
    plain = on_original(start, nnx.merge(graph, whole), start)
    np.testing.assert_array_equal(kernel_of(plain, "attention", "q"), whole["layers"]["attention"]["q"]["kernel"][...])
    with pytest.raises(ValueError, match="is not the original less"):
        on_original(start, tiny_model(seed=1), start)


def test_another_original_is_refused() -> None:
    base = tiny_model()
    start = add_lora(base, LoRA(targets=("q",), rank=4, init="pissa"), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"layers.attention.q is not the original less what its adapter began as"):
        on_original(start, tiny_model(seed=1), start)
    small = quantize_model(base, NF4(block=16))
    with pytest.raises(ValueError, match=r"rests in NF4 itself \(layers.*\): no weights from before are known"):
        on_original(small, small)
    with pytest.raises(ValueError, match=r"another model: layers.* is \(2, 32, 48\) there and \(2, 32, 64\) here"):
        on_original(small, tiny_model(mlp_dim=48, head_dim=6, num_heads=8))
