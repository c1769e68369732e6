"""PEFT loads our adapters and we load PEFT's: the same logits to 1e-5 in float32, for every kind of adapter."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.checkpoints.load import load_checkpoint
from models.checkpoints.peft import load_peft
from models.checkpoints.peft_folder import adapter_base, adapter_quantization
from models.checkpoints.peft_save import save_peft
from models.checkpoints.save import save_hf
from models.config import Attention, Block, Embedding, LayerNorm, Plain
from models.lora import LoRA, add_lora, merge_lora
from models.quantize import NF4, quantize_model
from models.transformer import CausalLM, unstacked
from tests.models.checkpoint_cases import tiny_model

peft = pytest.importorskip("peft", reason="the peft package is not installed")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

IDS = np.random.default_rng(0).integers(3, 264, (2, 24))
UNTIED = {"embedding": Embedding(tied=False, max_positions=256)}
BIASED = {"attention": Attention(qkv_bias=True)}  # what Qwen 2 has
GPT2 = {
    "norm": LayerNorm(),
    "attention": Attention(qkv_bias=True, out_bias=True),
    "mlp": Plain(activation="gelu_tanh", bias=True),
    "embedding": Embedding(tied=True, learned_positions=True, max_positions=256),
    "pattern": (Block(rotary=None),),
}
KINDS: dict[str, tuple[dict[str, Any], LoRA]] = {
    "lora": ({}, LoRA(targets=("q", "v"), rank=4, alpha=12.0)),
    "rslora": ({}, LoRA(targets=("q", "down"), rank=4, alpha=3.0, rslora=True)),
    "dora": ({}, LoRA(targets="all-linear", rank=3, dora=True)),
    "patterns": ({}, LoRA(targets="all-linear", rank=4, rank_pattern=(("mlp", 2),), alpha_pattern=(("q", 7.0),))),
    "embedding": ({}, LoRA(targets=("q", "embedding"), rank=4)),
    "lm_head": ({}, LoRA(targets=("v", "lm_head"), rank=4)),
    "both_tied": ({}, LoRA(targets=("embedding",), rank=4, tie_embedding=True)),
    "untied_dora": (UNTIED, LoRA(targets=("lm_head", "up"), rank=4, dora=True)),
    "norms": ({}, LoRA(targets=("k",), rank=4, also_train=("final_norm", "layers.mlp_norm"))),
    "tied_table": ({}, LoRA(targets=("q",), rank=4, also_train=("embedding",))),
    "biases": (BIASED, LoRA(targets=("q", "out"), rank=4, bias="all")),
    "gpt2": (GPT2, LoRA(targets=("q", "v", "down"), rank=4)),
    "gpt2_dora": (GPT2, LoRA(targets=("k", "up"), rank=4, dora=True)),
}


def model_of(changes: dict[str, Any]) -> CausalLM:
    """Sizes of GPT-2's heads follow from its width, so those are set for it alone."""
    return tiny_model(**changes, **({"num_heads": 4, "num_kv_heads": 4} if changes is GPT2 else {}))


def shaken(model: CausalLM, seed: int = 1) -> CausalLM:
    """The model with every adapter, bias, norm and table moved a little: what training does."""
    rng = np.random.default_rng(seed)
    graph, state = nnx.split(model)

    def moved(path: tuple, leaf: nnx.Variable) -> nnx.Variable:
        whole = path[-1] in ("bias", "embedding") or "norm" in str(path[-2:])
        trained = whole or any("lora" in str(part) for part in path)
        return leaf.replace(leaf.get_value() + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32) * trained)

    flat = [(path, moved(path, leaf)) for path, leaf in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(flat))


@partial(jax.jit, static_argnums=0)  # compiled once for all models of the same structure
def _logits(graph: Any, state: Any) -> jax.Array:
    model = nnx.merge(graph, state)
    positions = jnp.tile(jnp.arange(IDS.shape[1]), (len(IDS), 1))
    return model.logits(model(jnp.asarray(IDS, jnp.int32), jnp.ones(IDS.shape, jnp.int32), positions))


def logits_of(model: CausalLM) -> np.ndarray:
    return np.asarray(_logits(*nnx.split(model)))


def their_logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


def base_folder(model: CausalLM, folder: Path) -> Path:
    save_hf(model, folder)
    return folder


def their_base(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def slow_but(names: tuple[str, ...], every: list[str]) -> list[Any]:
    """The named cases in every run, the others where slow tests run too."""
    return [pytest.param(name, marks=() if name in names else (pytest.mark.slow,)) for name in every]


@pytest.fixture(scope="module", params=slow_but(("rslora", "dora", "embedding", "lm_head"), list(KINDS)))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any, Any]:
    """(base folder, adapter folder, the base, the adapted model) of one kind."""
    changes, lora = KINDS[request.param]
    base = model_of(changes)
    folder = tmp_path_factory.mktemp(request.param)
    # the base that PEFT loads has the norms and biases from before training; merging the trained ones is PEFT's work
    base_folder(base, folder / "base")
    adapted = add_lora(base, dataclasses.replace(lora, dropout=0.0), rngs=nnx.Rngs(0))
    whole = set(lora.also_train) | ({"bias"} if lora.bias != "none" else set())
    adapted = only_trained(shaken(adapted), adapted, whole)
    save_peft(adapted, lora, folder / "adapter", base=str(folder / "base"))
    return folder / "base", folder / "adapter", base, adapted


def only_trained(moved: CausalLM, start: CausalLM, whole: set[str]) -> CausalLM:
    """`moved` where a parameter is trained, `start` elsewhere."""
    graph, after = nnx.split(moved)
    before = dict(nnx.to_flat_state(nnx.state(start)))
    kept = []
    for path, leaf in nnx.to_flat_state(after):
        name = ".".join(map(str, path))
        trained = "lora" in name or any(pattern in name for pattern in whole)
        kept.append((path, leaf if trained else before[path]))
    return nnx.merge(graph, nnx.from_flat_state(kept))


def test_peft_gives_our_logits(exported: tuple[Path, Path, Any, Any]) -> None:
    base_at, adapter_at, base, adapted = exported
    ours = logits_of(adapted)
    model = peft.PeftModel.from_pretrained(their_base(base_at), adapter_at).eval()
    theirs = their_logits(model)
    scale = max(1.0, np.abs(ours).max())  # logits here reach 80: 1e-5 of their size is what float32 holds
    assert np.abs(theirs - ours).max() < 1e-5 * scale
    assert np.abs(logits_of(base) - ours).max() > 1e-2  # the adapter does something
    np.testing.assert_allclose(logits_of(merge_lora(adapted)), ours, rtol=1e-5, atol=1e-5 * scale)


def test_our_adapter_comes_back(exported: tuple[Path, Path, Any, Any]) -> None:
    base_at, adapter_at, _, adapted = exported
    loaded, lora = load_peft(adapter_at, load_checkpoint(base_at).model)
    np.testing.assert_allclose(logits_of(loaded), logits_of(adapted), rtol=1e-5, atol=1e-5)
    config = json.loads((adapter_at / "adapter_config.json").read_text())
    assert (lora.rslora, lora.dora) == (config["use_rslora"], config["use_dora"])


def theirs_saved(folder: Path, base_at: Path, **settings: Any) -> tuple[Path, np.ndarray]:
    """A folder that peft itself wrote, adapters moved away from their start, and the logits of peft's model."""
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings)
    model = peft.get_peft_model(their_base(base_at), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save.default" in name or "magnitude" in name or (parameter.requires_grad and "bias" in name):
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "lora_" in name:
                parameter.mul_(0.3)
    model.save_pretrained(folder)
    return folder, their_logits(model)


THEIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rslora": ({}, {"r": 4, "target_modules": ["q_proj", "v_proj"], "use_rslora": True}),
    "dora": ({}, {"r": 4, "target_modules": "all-linear", "use_dora": True}),
    "layers": ({}, {"r": 4, "target_modules": ["q_proj"], "layers_to_transform": [1], "rank_pattern": {"q_proj": 2}}),
    "embedding": ({}, {"r": 4, "target_modules": ["embed_tokens", "k_proj"], "alpha_pattern": {"k_proj": 5}}),
    "whole": (UNTIED, {"r": 4, "target_modules": ["lm_head"], "modules_to_save": ["embed_tokens", "input_layernorm"]}),
    "tied_table": (
        {},
        {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "biases": (BIASED, {"r": 4, "target_modules": ["q_proj", "down_proj"], "bias": "all"}),
    "gpt2": (GPT2, {"r": 4, "target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True}),
}


@pytest.mark.parametrize("name", slow_but(("layers",), list(THEIRS)))
def test_we_read_what_peft_wrote(name: str, tmp_path: Path) -> None:
    changes, settings = THEIRS[name]
    save_hf(model_of(changes), tmp_path / "base")
    folder, theirs = theirs_saved(tmp_path / "adapter", tmp_path / "base", **settings)
    loaded, _ = load_peft(folder, load_checkpoint(tmp_path / "base").model)
    assert np.abs(logits_of(loaded) - theirs).max() < 1e-5 * max(1.0, np.abs(theirs).max())


def test_a_foreign_adapter_is_refused_in_one_line(tmp_path: Path) -> None:
    lora = LoRA(targets=("q",), rank=4)
    adapted = add_lora(tiny_model(), lora, rngs=nnx.Rngs(0))
    save_peft(adapted, lora, tmp_path / "a")
    wide = tiny_model(embed_dim=64, head_dim=8)
    with pytest.raises(ValueError, match=r"lora_A \(4, 32\) .* is 64 x 64: it belongs to another base"):
        load_peft(tmp_path / "a", wide)
    with pytest.raises(ValueError, match=r"adapts model.layers.1.self_attn.q_proj, which this base does not have"):
        load_peft(tmp_path / "a", tiny_model(num_layers=1))
    small = quantize_model(adapted, NF4(block=32))
    save_peft(small, lora, tmp_path / "b")
    with pytest.raises(ValueError, match=r"trained on a base in NF4 .*, this one is in float: quantise it alike"):
        load_peft(tmp_path / "b", tiny_model())
    load_peft(tmp_path / "b", quantize_model(tiny_model(), NF4(block=32)))
    load_peft(tmp_path / "b", tiny_model(), other_base=True)
    with pytest.raises(ValueError, match=r"init='pissa' acts on a base that it changed, .*: put it"):
        save_peft(adapted, dataclasses.replace(lora, init="pissa"), tmp_path / "c")
    for use in (partial(load_peft, tmp_path / "a"), partial(save_peft, lora=lora, folder=tmp_path / "c")):
        with pytest.raises(ValueError, match="go with a stacked model"):  # each layer would get the halves of all
            use(model=unstacked(tiny_model()))
    biased = add_lora(model_of(BIASED), lora, rngs=nnx.Rngs(0))
    for also, why in (("k.bias", "layers.attention.k.kernel is not"), ("q", "has an adapter too")):
        with pytest.raises(ValueError, match=f"is trained whole and {why}, which PEFT has no words for"):
            save_peft(biased, dataclasses.replace(lora, also_train=(also,)), tmp_path / "c")
    with pytest.raises(ValueError, match="has no adapter: nothing to write for PEFT"):
        save_peft(tiny_model(), lora, tmp_path / "c")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no adapter_config.json.*is a pickle"):
        load_peft(tmp_path / "d", tiny_model())
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "LOHA"}))
    with pytest.raises(ValueError, match="peft_type='LOHA' is not supported; expected LORA"):
        load_peft(tmp_path / "a", tiny_model())


def test_an_adapter_whose_base_was_changed_or_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    """Each of these would load, and give other logits than PEFT's model has."""
    from safetensors.numpy import load_file, save_file

    lora, base = LoRA(targets=("q", "v"), rank=4), tiny_model()
    save_peft(add_lora(base, lora, rngs=nnx.Rngs(0)), lora, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter_model.safetensors")

    def refused(match: str, *, left_out: str = "", added: str = "", **changes: Any) -> None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | changes))
        kept = {name: value for name, value in tensors.items() if not left_out or left_out not in name}
        more = {added: np.ones(3, np.float32)} if added else {}
        save_file(kept | more, tmp_path / "adapter_model.safetensors")
        with pytest.raises(ValueError, match=match) as error:
            load_peft(tmp_path, base)
        assert "\n" not in str(error.value)

    for init in ("pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"):
        refused(f"init_lora_weights='{init}' changed the base", init_lora_weights=init)
    refused("kasa_config={'beta': 1.0} is not supported", kasa_config={"beta": 1.0})  # cuts the base's singular values
    for name, value in (("r", "8"), ("lora_alpha", 0), ("lora_alpha", None), ("lora_dropout", None)):
        refused(f"{name}={value!r} is no number that an adapter can have", **{name: value})
    for name, value in (("target_modules", "(q"), ("alpha_pattern", {"(q": 4})):
        refused(r"'\(q' is no regular expression: missing", **{name: value})
    q = "model.layers.1.self_attn.q_proj"
    refused(f"lacks base_model.model.{q}.lora_B, which", left_out=f"{q}.lora_B")
    refused(f"lacks any tensor of {q}, which .* asks for: it is not whole", left_out=q)
    refused(r"lacks any tensor of model.layers.0.self_attn.v_proj, .* and 1 more", left_out="v_proj")
    refused("lacks base_model.model.*lora_magnitude_vector", use_dora=True)
    refused("lacks any tensor of embed_tokens", modules_to_save=["embed_tokens"])
    extra = f"base_model.model.{q}.lora_magnitude_vector"
    refused(f"holds {extra}, which adapter_config.json does not ask for", added=extra)
    refused("holds other.weight, which this base has no place for", added="base_model.model.other.weight")
    (tmp_path / "sluice_adapter.json").write_text("{")
    refused("sluice_adapter.json is not JSON")
    (tmp_path / "sluice_adapter.json").write_text('{"quantization": {"type": "NF5", "block": 64}}')
    with pytest.raises(ValueError, match="'NF5', 'block': 64} is not known here: written by another version"):
        adapter_quantization(tmp_path)


def test_an_adapter_knows_its_base(tmp_path: Path) -> None:
    lora, base = LoRA(targets=("q",), rank=4), tiny_model()
    save_peft(add_lora(base, lora, rngs=nnx.Rngs(0)), lora, tmp_path, base="models/mine")
    graph, state = nnx.split(base)
    half = nnx.merge(graph, jax.tree.map(lambda values: values.astype(jnp.bfloat16), state))
    for same in (base, half):  # the same weights, whatever they are loaded as
        load_peft(tmp_path, same)
    moved = tiny_model()
    up = moved.layers.mlp.up.kernel
    moved.layers.mlp.up.kernel = up.replace(up.get_value().at[1, 2, 3].multiply(1.01))
    with pytest.raises(ValueError, match=r"another base: layers.mlp.up.kernel differs here; .* \(models/mine\)"):
        load_peft(tmp_path, moved)
    load_peft(tmp_path, moved, other_base=True)


def test_a_base_on_the_hub_is_named_as_peft_names_it(tmp_path: Path) -> None:
    lora = LoRA(targets=("q",), rank=4)
    save_peft(add_lora(tiny_model(), lora, rngs=nnx.Rngs(0)), lora, tmp_path, base="hf:org/name@v2")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/name", "v2")
    assert adapter_base(tmp_path) == "hf:org/name@v2"
    (tmp_path / "sluice_adapter.json").unlink()  # as PEFT writes it
    assert adapter_base(tmp_path) == "hf:org/name@v2"
    (tmp_path / "adapter_config.json").write_text("[")
    with pytest.raises(ValueError, match="is no JSON object: expected the settings of a PEFT adapter"):
        adapter_base(tmp_path)


def test_a_tied_table_trained_in_one_place_is_refused(tmp_path: Path) -> None:
    save_hf(model_of({}), tmp_path / "base")
    settings = {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}
    folder, _ = theirs_saved(tmp_path / "adapter", tmp_path / "base", **settings)
    with pytest.raises(ValueError, match="tied token table in one of its two places alone"):
        load_peft(folder, load_checkpoint(tmp_path / "base").model)
