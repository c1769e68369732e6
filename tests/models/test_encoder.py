"""BERT and RoBERTa against transformers on torch: logits, folders both ways, packing."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from models.checkpoints.bert import load_bert, save_bert
from models.encoder import EncoderConfig, EncoderLM

torch = pytest.importorskip("torch", reason="torch is not installed: parity with transformers is not tested")
import transformers  # noqa: E402

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}


@pytest.fixture(scope="module", params=["bert", "roberta"])
def pair(request, tmp_path_factory):
    """(their model, its folder, ours loaded from there): random weights, biases and norms drawn too."""
    torch.manual_seed(0)
    if request.param == "bert":
        model = transformers.BertForMaskedLM(transformers.BertConfig(**SIZES, hidden_act="gelu"))
    else:
        model = transformers.RobertaForMaskedLM(transformers.RobertaConfig(**SIZES, type_vocab_size=1, pad_token_id=1))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp(request.param)
    model.eval().save_pretrained(folder)
    return model, folder, load_bert(folder, mask_id=3)


@pytest.fixture(scope="module")
def batch():
    ids = np.random.default_rng(0).integers(5, 97, (3, 19))
    mask = np.ones_like(ids)
    mask[1, 11:], mask[2, 5:] = 0, 0
    return ids, mask


@partial(jax.jit, static_argnames="graph")
def logits(graph, state, ids, segments, positions):
    model = nnx.merge(graph, state)
    return model.logits(model(ids, segments, positions))


def ours(model, ids, segments, positions):
    """Logits, padded to one shape for all tests."""
    graph, state = nnx.split(model)
    rows, length = ids.shape
    padding = ((0, 3 - rows), (0, 19 - length))
    padded = [np.pad(values, padding) for values in (ids, segments, positions)]
    return np.asarray(logits(graph, state, *padded))[:rows, :length]


def theirs(model, ids, mask):
    padded = np.where(mask, ids, model.config.pad_token_id)
    with torch.no_grad():
        return model(input_ids=torch.tensor(padded), attention_mask=torch.tensor(mask)).logits.numpy()


def test_logits_are_those_of_transformers(pair, batch):
    model, _, loaded = pair
    ids, mask = batch
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    difference = np.abs(ours(loaded, ids, mask, positions) - theirs(model, ids, mask))[mask > 0]
    assert difference.max() < 1e-4


def test_a_saved_folder_loads_in_transformers_with_the_same_logits(pair, batch, tmp_path):
    model, _, loaded = pair
    ids, mask = batch
    save_bert(loaded, tmp_path / "saved")
    again, info = type(model).from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert again.config.model_type == model.config.model_type
    np.testing.assert_allclose(theirs(again.eval(), ids, mask), theirs(model, ids, mask), atol=1e-5)


def test_old_names_of_norms_are_read(pair, tmp_path):
    from safetensors.numpy import load_file, save_file

    _, folder, loaded = pair
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    old = {"weight": "gamma", "bias": "beta"}
    tensors = {}
    for name, values in load_file(folder / "model.safetensors").items():
        stem, _, last = name.rpartition(".")
        tensors[f"{stem}.{old[last]}" if stem.endswith("LayerNorm") else name] = values
    assert sum(name.endswith("gamma") for name in tensors) >= 5
    save_file(tensors, tmp_path / "model.safetensors")
    again = nnx.state(load_bert(tmp_path, mask_id=3))
    jax.tree.map(np.testing.assert_array_equal, again, nnx.state(loaded))


def test_documents_that_share_a_row_do_not_see_each_other(pair, batch):
    _, _, loaded = pair
    ids = batch[0][:1]
    alone = [
        ours(loaded, part, np.ones_like(part), np.arange(part.shape[1])[None]) for part in (ids[:, :8], ids[:, 8:])
    ]
    segments = np.array([[1] * 8 + [2] * 11])
    positions = np.array([[*range(8), *range(11)]])
    np.testing.assert_allclose(ours(loaded, ids, segments, positions), np.concatenate(alone, axis=1), atol=1e-5)


def test_what_cannot_be_read_is_one_line(tmp_path):
    for name, text, message in (
        ("llama", '{"model_type": "llama"}', "masked language models are read of bert, roberta"),
        ("relative", '{"model_type": "bert", "position_embedding_type": "relative_key"}', "only 'absolute'"),
        ("short", '{"model_type": "bert"}', "lacks 'vocab_size'"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_bert(tmp_path / name)
    with pytest.raises(ValueError, match="no checkpoint at"):
        load_bert(tmp_path / "nothing")


def test_an_encoder_needs_a_mask_of_its_vocabulary():
    with pytest.raises(ValueError, match="mask_id=97 is outside"):
        EncoderConfig(vocab_size=97, num_layers=1, embed_dim=8, num_heads=2, mlp_dim=8, mask_id=97)
    config = EncoderConfig(vocab_size=97, num_layers=1, embed_dim=8, num_heads=2, mlp_dim=8, mask_id=96)
    assert EncoderLM(config, rngs=nnx.Rngs(0)).config.longest == 512
