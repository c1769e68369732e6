"""GGUF: written, read, dequantised and un-permuted; the tokenizer in the metadata gives the same ids."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from tokenizers import Tokenizer, models, normalizers

from data.document import Document
from data.tables import write_documents
from data.tokenizer_config import TokenizerConfig
from data.tokenizer_train import train_tokenizer
from models.checkpoints.gguf_config import gguf_table
from models.checkpoints.gguf_file import GgufFile
from models.checkpoints.gguf_tokenizer import gguf_tokenizer, tokenizer_of
from models.checkpoints.gguf_tokenizer_out import tokenizer_metadata
from models.checkpoints.load import load_checkpoint
from models.checkpoints.save_gguf import save_gguf
from models.checkpoints.tokenizer import load_tokenizer_folder
from models.config import Attention, Block, Embedding, Gated, LayerNorm, Llama3Scaling, Plain, RMSNorm, Rotary
from models.parity import our_logits
from tests.models.checkpoint_cases import VOCAB, byte_tokenizer, tiny_model

gguf = pytest.importorskip("gguf", reason="gguf is not installed: GGUF files are not tested")
IDS = np.random.default_rng(0).integers(3, VOCAB, 40).astype(np.int32)


GEMMA = {
    "head_dim": 256,
    "num_heads": 2,
    "num_kv_heads": 1,
    "norm": RMSNorm(offset=True, sandwich=True),
    "mlp": Gated(activation="gelu_tanh"),
}
LOCAL = Block(window=8)
FAMILIES = {
    "llama": {"num_kv_heads": 2, "embedding": Embedding(tied=False, max_positions=256)},
    "qwen2": {"attention": Attention(qkv_bias=True)},
    "qwen3": {"attention": Attention(qk_norm=RMSNorm()), "head_dim": 16},
    "smollm3": {"num_layers": 4, "pattern": (Block(), Block(), Block(), Block(rotary=None))},
    "gpt2": {
        "head_dim": 4,
        "norm": LayerNorm(),
        "attention": Attention(qkv_bias=True, out_bias=True),
        "mlp": Plain(bias=True),
        "embedding": Embedding(learned_positions=True, max_positions=1024),
        "pattern": (Block(rotary=None),),
    },
    "gemma": {
        **GEMMA,
        "norm": RMSNorm(offset=True),
        "embedding": Embedding(scale=math.sqrt(32), max_positions=256),
    },
    "gemma2": {
        **GEMMA,
        "attention": Attention(softcap=50.0),
        "embedding": Embedding(scale=math.sqrt(32), max_positions=256, logit_softcap=30.0),
        "pattern": (LOCAL, Block()),
    },
    "gemma3": {
        **GEMMA,
        "num_layers": 6,
        "attention": Attention(qk_norm=RMSNorm(offset=True)),
        "embedding": Embedding(scale=math.sqrt(32), max_positions=256),
        "pattern": (*[LOCAL] * 5, Block(rotary=Rotary(theta=1e6))),
    },
}


def half_precision(model):
    """The model with weights that float16 holds exactly, so that what is written is what was there."""
    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(lambda leaf: leaf.astype(np.float16).astype(np.float32), state))


@pytest.mark.parametrize(("architecture", "changes"), FAMILIES.items(), ids=FAMILIES)
def test_a_saved_model_loads_with_equal_logits(tmp_path, architecture, changes):
    model = half_precision(tiny_model(**changes))
    path = save_gguf(model, tmp_path / "model.gguf", tokenizer=byte_tokenizer())
    assert GgufFile(path).architecture == architecture
    loaded = load_checkpoint(path)
    assert dataclasses.replace(loaded.config, execution=model.config.execution) == model.config
    for path, leaf in nnx.to_flat_state(nnx.state(loaded.model)):
        expected = dict(nnx.to_flat_state(nnx.state(model)))[path].get_value()
        np.testing.assert_allclose(leaf.get_value(), expected, atol=1e-6, err_msg=str(path))  # 1 + w - 1 rounds
    assert loaded.tokenizer.encode("Hé 12\n") == byte_tokenizer().encode("Hé 12\n")
    assert (loaded.tokenizer.bos_id, loaded.tokenizer.eos_id) == (1, 2)


def test_a_window_as_long_as_the_context_is_none(tmp_path):
    model = tiny_model(pattern=(Block(window=256),))
    assert load_checkpoint(save_gguf(model, tmp_path / "model.gguf")).config.pattern == model.config.pattern


def test_rotary_factors_of_llama_31_are_recognised(tmp_path):
    rotary = Rotary(theta=500_000.0, scaling=Llama3Scaling(factor=8.0))
    model = tiny_model(pattern=(Block(rotary=rotary),))
    path = save_gguf(model, tmp_path / "model.gguf")
    assert GgufFile(path).shapes()["rope_freqs.weight"] == (4,)
    assert load_checkpoint(path).config.pattern == model.config.pattern
    other = tiny_model(pattern=(Block(rotary=Rotary(scaling=Llama3Scaling(factor=8.0, original_positions=512))),))
    with pytest.raises(ValueError, match="GGUF has no architecture"):
        save_gguf(other, tmp_path / "other.gguf")


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": LayerNorm()},
        {"attention": Attention(softcap=5.0)},
        {"pattern": (Block(), LOCAL)},
        {"pattern": (LOCAL,)},  # llama.cpp would run it without its window
        {**FAMILIES["gemma2"], "attention": Attention(softcap=50.0, query_scale=0.5)},
    ],
)
def test_a_model_without_an_architecture_is_refused(tmp_path, changes):
    with pytest.raises(ValueError, match="GGUF has no architecture"):
        save_gguf(tiny_model(**changes), tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


# What transformers assumes where its GGUF reader has no word for it: a Qwen head's width, GPT-2's vocabulary and MLP.
ASSUMED: dict[str, dict[str, Any]] = {
    "qwen2": {"head_dim": 4},
    "qwen3": {"head_dim": 128},
    "gpt2": {"vocab_size": 259, "mlp_dim": 4 * 32},
}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gpt2", "gemma2", "gemma3"])
def test_transformers_reads_the_file_with_equal_logits(tmp_path, architecture):
    torch = pytest.importorskip("torch", reason="torch is not installed: GGUF files are not read by transformers")
    pytest.importorskip("accelerate", reason="accelerate is not installed: transformers cannot read GGUF")
    from transformers import AutoModelForCausalLM

    model = half_precision(tiny_model(**FAMILIES[architecture] | ASSUMED.get(architecture, {})))
    save_gguf(model, tmp_path / "model.gguf", tokenizer=byte_tokenizer())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(IDS.astype(np.int64))[None]).logits[0].numpy()
    np.testing.assert_allclose(our_logits(model, IDS), expected, atol=1e-4, rtol=1e-4)


def test_llama_files_hold_rotated_pairs_side_by_side(tmp_path):
    """Row 2j + h of a head there is row j + h * H/2 here (H/2 = 4, so row 1 there is row 4 here)."""
    model = tiny_model()
    file = GgufFile(save_gguf(model, tmp_path / "model.gguf"))
    here = np.asarray(model.layers.attention.q.kernel.get_value()[0]).T
    there = file.view("blk.0.attn_q.weight").astype(np.float32)
    np.testing.assert_allclose(there[[0, 1, 2, 8, 9]], here[[0, 4, 1, 8, 12]], atol=1e-3)


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_quantised_tensors_are_dequantised(tmp_path, kind):
    values = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    _, found = _one_tensor(tmp_path, gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind]), kind)
    assert found.shape == values.shape and found.dtype == np.float32
    assert np.abs(found - values).max() < {"Q4_1": 0.2, "Q8_0": 0.02}[kind]


def test_q6_k_blocks_follow_their_definition(tmp_path):
    """A block of 256: low 4 bits, high 2 bits, 16 signed scales, one float16 scale; value = d * scale * (q - 32)."""
    rng = np.random.default_rng(0)
    q, scales, d = rng.integers(0, 64, 256), rng.integers(-100, 100, 16).astype(np.int8), np.float16(0.01)
    quarters = q.reshape(2, 4, 32)  # in each half of the block: four runs of 32
    low = np.stack([(h[0] & 15) | ((h[2] & 15) << 4) for h in quarters])
    low = np.stack([low, np.stack([(h[1] & 15) | ((h[3] & 15) << 4) for h in quarters])], axis=1)
    high = np.stack([sum((h[k] >> 4) << (2 * k) for k in range(4)) for h in quarters])
    block = low.astype(np.uint8).tobytes() + high.astype(np.uint8).tobytes() + scales.tobytes() + d.tobytes()
    _, found = _one_tensor(tmp_path, np.frombuffer(block, np.uint8)[None], "Q6_K")
    expected = np.float32(d) * np.repeat(scales.astype(np.float32), 16) * (q - 32)
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)


def _one_tensor(folder, data, kind):
    path = folder / "one.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("x", data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(path)
    return file, file.view("x")


def test_bad_files_are_refused_in_one_line(tmp_path):
    path = save_gguf(tiny_model(), tmp_path / "model.gguf", tokenizer=byte_tokenizer())
    whole = path.read_bytes()
    for data, message in [(whole[:1000], "truncated"), (whole[:-9000], "truncated"), (b"PK" + whole, "not a GGUF")]:
        (tmp_path / "bad.gguf").write_bytes(data)
        with pytest.raises(ValueError, match=message):
            GgufFile(tmp_path / "bad.gguf")
    with pytest.raises(ValueError, match="'mamba' is not known"):
        gguf_table("mamba")


def test_sentencepiece_vocabularies_merge_by_score(tmp_path):
    pieces = ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab", "▁a", *(f"<0x{i:02X}>" for i in range(256))]
    scores = [0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -1.0, -2.0, -3.0, *[0.0] * 256]
    writer = gguf.GGUFWriter(tmp_path / "sp.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types([2, 3, 3, *[1] * 6, *[6] * 256])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokenizer = gguf_tokenizer(GgufFile(tmp_path / "sp.gguf"))
    assert tokenizer.encode_prompt("ab a") == [1, 7, 8]
    assert tokenizer.encode("é") == [3, 9 + 0xC3, 9 + 0xA9]
    assert tokenizer.decode(tokenizer.encode("ab é a")) == "ab é a"


def test_a_sentencepiece_tokenizer_is_written_with_the_same_ids(tmp_path):
    """The tokenizer that a dataset of ours trains, out and in again."""
    shard = tmp_path / "shard.parquet"
    files = sorted(Path(__file__).parent.glob("*.py"))
    texts = [path.read_text()[:20_000].replace("▁", "_") for path in files]  # GGUF cannot tell ▁ from a space
    write_documents(shard, [Document(id=str(i), text=text, source="x") for i, text in enumerate(texts)])
    train_tokenizer(TokenizerConfig(vocab_size=700, num_threads=1), [shard], tmp_path / "tokenizer")
    tokenizer = load_tokenizer_folder(tmp_path / "tokenizer", prefix_bos=True)
    path = save_gguf(tiny_model(vocab_size=700), tmp_path / "model.gguf", tokenizer=tokenizer)
    again = load_checkpoint(path).tokenizer
    for text in (*texts, "Ünïcödé 日本語  \t\n x", ""):
        assert again.encode_prompt(text) == tokenizer.encode_prompt(text)
        assert again.decode(again.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert (again.bos_id, again.eos_id, again.pad_id) == (1, 2, 3)


def test_tokenizers_that_gguf_has_no_words_for_are_refused():
    tokenizer = byte_tokenizer()
    backend = Tokenizer.from_str(tokenizer.backend.to_str())
    backend.normalizer = normalizers.Lowercase()
    with pytest.raises(ValueError, match="in a way that GGUF has no words for"):
        tokenizer_metadata(dataclasses.replace(tokenizer, backend=backend))
    backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    with pytest.raises(ValueError, match="this one is Unigram"):
        tokenizer_metadata(dataclasses.replace(tokenizer, backend=backend))
    words = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a", "b", "ab"],
        "tokenizer.ggml.merges": ["a b"],
    }
    smaug, llama3 = (tokenizer_of(words | {"tokenizer.ggml.pre": name}, "x") for name in ("smaug-bpe", "llama-bpe"))
    assert smaug.backend.to_str() == llama3.backend.to_str()  # two names of one way to split
    with pytest.raises(ValueError, match=r"x.gguf has no score for each of its 1 tokens"):
        tokenizer_of({"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a"]}, "x.gguf")
    with pytest.raises(ValueError, match="kind 'bert'"):
        tokenizer_of({"tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": ["a"]}, "x.gguf")
