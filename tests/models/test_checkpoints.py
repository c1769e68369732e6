"""Hugging Face folders: read slice by slice onto a mesh, written in shards, refused in one line where wrong."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from models.checkpoints.load import load_checkpoint, load_params
from models.checkpoints.location import resolve
from models.checkpoints.names import LLAMA, Rule
from models.checkpoints.run import read_run_config
from models.checkpoints.save import save_hf
from models.checkpoints.tensors import SafetensorsFolder, open_safetensors, write_safetensors
from models.checkpoints.tokenizer import load_tokenizer_folder, render_template
from models.config import Attention, Embedding, RMSNorm
from models.parity import our_logits
from models.sharding import MeshConfig, make_mesh
from tests.models.checkpoint_cases import VOCAB, byte_tokenizer, save_tiny, tiny_config, tiny_model

IDS = np.random.default_rng(0).integers(3, VOCAB, 24).astype(np.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hf")
    save_tiny(path, embedding=Embedding(tied=False, max_positions=256))
    return path


def _leaves(model) -> dict[str, jax.Array]:
    return {".".join(map(str, p)): leaf.get_value() for p, leaf in nnx.to_flat_state(nnx.state(model))}


def _copy(folder, target):
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def _rewrite(folder, change):
    """The folder with its tensors passed through `change`, a function of a dict of arrays."""
    tensors = {name: np.array(view) for name, view in open_safetensors(folder / "model.safetensors").items()}
    change(tensors)
    write_safetensors(folder, [(n, a.shape, a.dtype, lambda a=a: a) for n, a in tensors.items()])
    return folder


@pytest.mark.parametrize("mesh", [MeshConfig(fsdp=8), MeshConfig(fsdp=4, tensor=2), MeshConfig(data=2, tensor=4)])
def test_each_device_holds_its_slice_and_nothing_else(folder, mesh):
    whole = _leaves(load_checkpoint(folder).model)
    loaded = _leaves(load_checkpoint(folder, mesh=make_mesh(mesh)).model)
    for name, leaf in loaded.items():
        parts = mesh.fsdp * mesh.tensor if name.endswith(("kernel", "embedding")) else 1
        assert leaf.addressable_shards[0].data.size * parts == leaf.size, name
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(whole[name]))


def test_devices_read_only_their_slices_of_the_file(folder, monkeypatch):
    """Values handed to the devices, counted: with fsdp=8 every matrix is read once in all, not once a device."""
    handed = []
    make = jax.make_array_from_callback

    def counting(shape, sharding, read, **kwargs):
        def counted(index):
            part = read(index)
            handed.append(part.size)
            return part

        return make(shape, sharding, counted, **kwargs)

    monkeypatch.setattr(jax, "make_array_from_callback", counting)
    model = load_checkpoint(folder, mesh=make_mesh(MeshConfig(fsdp=8))).model
    matrices = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model)) if leaf.size > 1000)
    assert sum(size for size in handed) < 1.2 * matrices


def test_saving_and_loading_gives_equal_weights_in_every_dtype(tmp_path):
    model = tiny_model()
    for dtype, kept in [(None, "float32"), ("bfloat16", "bfloat16"), ("float16", "float32")]:
        save_hf(model, tmp_path / str(dtype), dtype=dtype)
        loaded = load_checkpoint(tmp_path / str(dtype))
        assert loaded.config.param_dtype == kept
        for name, leaf in _leaves(loaded.model).items():
            stored = np.asarray(_leaves(model)[name]).astype(dtype or np.float32).astype(np.float32)
            np.testing.assert_array_equal(np.asarray(leaf).astype(np.float32), stored)


def test_each_tensor_keeps_its_own_dtype(tmp_path):
    save_tiny(tmp_path)

    def to_bfloat16(tensors):
        for name in list(tensors):
            if "mlp" in name:
                tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)

    leaves = _leaves(load_checkpoint(_rewrite(tmp_path, to_bfloat16)).model)
    assert leaves["layers.mlp.up.kernel"].dtype == ml_dtypes.bfloat16
    assert leaves["layers.attention.q.kernel"].dtype == np.float32
    assert _leaves(load_checkpoint(tmp_path, param_dtype="float32").model)["layers.mlp.up.kernel"].dtype == np.float32


def test_parts_without_a_word_are_saved_as_an_equal_model(tmp_path):
    """Norms without parameters and a norm on the embedding, as the quickstart has them."""
    model = tiny_model(
        attention=Attention(qk_norm=RMSNorm(scale=False)), embedding=Embedding(tied=True, norm=RMSNorm(), scale=2.0)
    )
    save_hf(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "qwen3"
    np.testing.assert_allclose(our_logits(load_checkpoint(tmp_path).model, IDS), our_logits(model, IDS), atol=2e-4)


def test_a_model_of_no_family_is_refused():
    from models.checkpoints.families import write_config

    with pytest.raises(ValueError, match="no Hugging Face family"):
        write_config(tiny_config(attention=Attention(softcap=5.0)))


def _missing(t):
    del t["model.layers.1.mlp.up_proj.weight"]


def _unexpected(t):
    t["model.layers.0.self_attn.q_proj.bias"] = np.zeros(64, np.float32)


def _misshapen(t):
    t["model.layers.0.mlp.up_proj.weight"] = np.zeros((64, 31), np.float32)


def _vocabulary(t):
    t["model.embed_tokens.weight"] = t["model.embed_tokens.weight"][:-8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_missing, "lacks model.layers.1.mlp.up_proj.weight"),
        (_unexpected, "no place for: model.layers.0.self_attn.q_proj.bias"),
        (_misshapen, r"up_proj.weight is \(64, 31\), expected \(64, 32\)"),
        (_vocabulary, r"embed_tokens.weight is \(256, 32\), expected \(264, 32\)"),
    ],
)
def test_wrong_tensors_are_named(folder, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load_checkpoint(_rewrite(_copy(folder, tmp_path), change))


def test_another_models_tokenizer_is_refused(tmp_path):
    save_tiny(tmp_path, vocab_size=100)
    with pytest.raises(ValueError, match="a tokenizer of 259 tokens and a model of 100"):
        load_checkpoint(tmp_path)


def test_a_stray_head_of_a_tied_model_is_refused_unless_it_is_the_same(tmp_path):
    save_tiny(tmp_path)
    _rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    load_checkpoint(tmp_path)
    _rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1}))
    with pytest.raises(ValueError, match="says that it is tied"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("prefix", ["model.", ""], ids=["as it is saved", "without the outermost module's name"])
def test_a_stray_head_is_found_in_both_spellings(tmp_path, prefix):
    save_tiny(tmp_path)

    def add_head(tensors):
        for name in list(tensors):
            tensors[prefix + name.removeprefix("model.")] = tensors.pop(name)
        tensors["lm_head.weight"] = tensors[f"{prefix}embed_tokens.weight"] + 1

    _rewrite(tmp_path, add_head)
    with pytest.raises(ValueError, match="says that it is tied"):
        load_checkpoint(tmp_path)


def _config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "t5"}, "family 't5'"),
        ({"auto_map": {"AutoModelForCausalLM": "x.Y"}}, "remote code"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "'yarn' is not supported"),
        ({"hidden_act": "relu"}, "'relu' is not supported"),
    ],
)
def test_configs_that_cannot_be_read_right_are_refused(folder, tmp_path, changes, message):
    _config(_copy(folder, tmp_path), **changes)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path)


def test_truncated_and_absent_files_are_refused(folder, tmp_path):
    _copy(folder, tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    for data, message in [(whole[:-500], "truncated"), (whole[:100], "not a whole safetensors file")]:
        (tmp_path / "model.safetensors").write_bytes(data)
        with pytest.raises(ValueError, match=message):
            load_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match="never loaded"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"), [("weights.bin", "pickle"), ("model.pt", "pickle"), ("notes.txt", "no checkpoint")]
)
def test_files_that_are_no_checkpoint_are_refused(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match=message):
        resolve(tmp_path / name)


def test_locations_that_do_not_exist_are_refused(tmp_path):
    for location, message in [
        (tmp_path / "nowhere", "no checkpoint at"),
        ("package:no_such_package_here/*.gguf", "is not installed"),
        ("package:jax/*.gguf", "matches 0 files"),
    ]:
        with pytest.raises(ValueError, match=message):
            resolve(location)


def test_an_index_cannot_point_outside_its_folder(folder, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../x.safetensors"}}))
    with pytest.raises(ValueError, match="outside its folder"):
        SafetensorsFolder(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": ["x"]}', '{"weight_map": {"x": 1}}'])
def test_a_broken_index_is_named(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index.json is not an index: expected"):
        SafetensorsFolder(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        {"x": {"dtype": "F32", "shape": [1]}},
        {"x": {"dtype": "F32", "data_offsets": [0, 4]}},
        {"x": {"shape": [1], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0]}},
        {"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"x": 1},
    ],
)
def test_a_header_without_its_fields_is_named(tmp_path, header):
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(ValueError, match=r"model.safetensors has a safetensors header whose entry 'x' lacks"):
        open_safetensors(tmp_path / "model.safetensors")


def test_a_header_that_is_no_object_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes((5).to_bytes(8, "little") + b'["x"]')
    with pytest.raises(ValueError, match=r"model.safetensors has a safetensors header that is a JSON list: expected"):
        open_safetensors(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"])
@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[]", "holds a JSON list")])
def test_a_broken_json_file_is_named(folder, tmp_path, name, text, message):
    (_copy(folder, tmp_path) / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name} {message}"):
        load_checkpoint(tmp_path)


def test_the_tokenizer_and_template_survive_saving(tmp_path):
    tokenizer = byte_tokenizer()

    dataclasses.replace(tokenizer, chat_template="{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}").save(
        tmp_path
    )
    again = load_tokenizer_folder(tmp_path)
    assert again.encode("héllo </s>") == tokenizer.encode("héllo </s>")
    assert (again.bos_id, again.eos_id, again.stop_ids) == (1, 2, (2,))
    assert again.render_chat([{"role": "user", "content": "hi"}]) == "<s>hi</s>"


def test_templates_run_in_a_sandbox():
    with pytest.raises(ValueError, match="chat template failed"):
        render_template("{{ messages.__class__.__mro__ }}", messages=[])
    with pytest.raises(ValueError, match="refuses this conversation: roles"):
        render_template("{{ raise_exception('roles') }}", messages=[])
    assert render_template("{% generation %}x{{ messages[0] }}{% endgeneration %}", messages=["y"]) == "xy"


def test_training_starts_from_the_same_weights_or_says_why_not(folder):
    mesh = make_mesh(MeshConfig(fsdp=2), jax.devices()[:2])
    config = tiny_config(embedding=Embedding(tied=False, max_positions=64), norm=RMSNorm(eps=1e-6))
    params = load_params(folder, config, mesh)
    np.testing.assert_array_equal(params["embedding"], _leaves(load_checkpoint(folder).model)["embedding"])
    with pytest.raises(ValueError, match=r"mlp_dim=64 there, 80 here"):
        load_params(folder, tiny_config(embedding=Embedding(tied=False), mlp_dim=80), mesh)


def test_the_model_config_of_a_run_is_read_back(tmp_path):
    from train.config import to_json

    config = tiny_config(attention=Attention(qk_norm=RMSNorm(scale=False)))
    (tmp_path / "config.json").write_text(json.dumps({"config": {"model": to_json(config)}}))
    assert read_run_config(tmp_path) == config


def test_rules_are_their_own_inverse():
    config, rng = tiny_config(num_kv_heads=2), np.random.default_rng(0)
    for rule in (*LLAMA.values(), Rule("x", transpose=True, interleaved="q"), Rule("x", plus=1.0)):
        ours = rng.integers(0, 100, (16, 64) if rule.transpose else (64,)).astype(np.float32)
        np.testing.assert_array_equal(rule.ours(rule.theirs([ours], config), config), ours)


MEASURE = """
import resource, sys
import jax, numpy as np
from flax import nnx
from models.checkpoints.load import load_checkpoint
from models.sharding import MeshConfig, make_mesh
mesh = make_mesh(MeshConfig(fsdp=8)) if jax.device_count() == 8 else None
jax.numpy.zeros(1).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = load_checkpoint(sys.argv[1], mesh=mesh).model
jax.block_until_ready(nnx.state(model))
size = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, size)
"""


@pytest.mark.slow
def test_loading_needs_no_more_host_memory_than_the_weights_and_a_gigabyte(tmp_path):
    """A model of 1.6 GB, in a process of its own, on one device and on a mesh of eight.

    The devices are this host's memory, and what is mapped of the file counts too.
    """
    save_hf(
        tiny_model(embed_dim=1024, mlp_dim=4096, num_layers=24, head_dim=128, embedding=Embedding(max_positions=64)),
        tmp_path,
    )
    for devices in (1, 8):
        environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        command = [sys.executable, "-c", MEASURE, str(tmp_path)]
        found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        grown, size = map(int, found.stdout.split())
        assert size > 1.5e9 and grown < size + 1e9, (devices, grown, size)
