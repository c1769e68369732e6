"""Every family: a random model of transformers -> Sluice -> equal logits -> saved -> transformers, equal logits."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.cache import init_cache
from models.checkpoints.load import load_checkpoint
from models.checkpoints.save import save_hf

torch = pytest.importorskip("torch", reason="torch is not installed: parity with transformers is not tested")
transformers = pytest.importorskip("transformers")

VOCAB, LENGTH = 120, 288
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # large, so that a wrong layout cannot hide
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA31 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
}


def _family(name: str):
    t = transformers
    if name == "gpt2":
        config = t.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=512, initializer_range=0.2)
        return t.GPT2LMHeadModel(config)
    makers = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SIZES)),
        "llama-tied-biased": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True, mlp_bias=True)
        ),
        "llama3.1": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SIZES, rope_parameters=LLAMA31)),
        "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**SIZES, sliding_window=40)),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**SIZES)),
        "qwen2-window": lambda: t.Qwen2ForCausalLM(
            t.Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=40, max_window_layers=1)
        ),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True)),
        "smollm3": lambda: t.SmolLM3ForCausalLM(t.SmolLM3Config(**SIZES, no_rope_layer_interval=2)),
        "gemma": lambda: t.GemmaForCausalLM(t.GemmaConfig(**SIZES, head_dim=16)),
        "gemma2": lambda: t.Gemma2ForCausalLM(
            t.Gemma2Config(**SIZES, head_dim=16, sliding_window=40, query_pre_attn_scalar=24)
        ),
        "gemma3": lambda: t.Gemma3ForCausalLM(
            t.Gemma3TextConfig(
                **SIZES, head_dim=16, sliding_window=40, rope_parameters=GEMMA3_ROPE, sliding_window_pattern=2
            )
        ),
    }
    return makers[name]()


FAMILIES = (
    "gpt2",
    "llama",
    "llama-tied-biased",
    "llama3.1",
    "mistral",
    "qwen2",
    "qwen2-window",
    "qwen3",
    "smollm3",
    "gemma",
    "gemma2",
    "gemma3",
)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """(folder of transformers, its model, ours, our logits of `_rows`); norms and biases are random too."""
    torch.manual_seed(0)
    theirs = _family(request.param).eval().float()
    with torch.no_grad():
        for value in theirs.parameters():
            if value.ndim == 1:
                value += 0.1 * torch.randn_like(value)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    ours = load_checkpoint(folder).model
    inputs, segments, positions, _ = _rows()
    return folder, theirs, ours, np.asarray(_our_logits(ours, inputs, segments, positions))


def _their_logits(model, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].numpy()


@nnx.jit
def _our_logits(model, inputs, segments, positions):
    return model.logits(model(inputs, segments, positions))


@functools.partial(jax.jit, static_argnums=0)
def _continue(graph, state, cache, ids):
    model = nnx.merge(graph, state)
    places = cache.length_B[:, None] + jnp.arange(ids.shape[1])
    hidden, cache = model(ids, jnp.ones_like(ids), places, cache)
    return model.logits(hidden), cache


def _rows() -> tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[int, int, int]]]:
    """Three rows: one document, two packed ones, one padded. Spans: (row, start, end) of each document."""
    inputs = np.random.default_rng(0).integers(3, VOCAB, (3, LENGTH)).astype(np.int32)
    spans = [(0, 0, LENGTH), (1, 0, 100), (1, 100, LENGTH), (2, 0, 260)]
    segments, positions = np.zeros_like(inputs), np.zeros_like(inputs)
    for number, (row, start, end) in enumerate(spans):
        segments[row, start:end] = number + 1
        positions[row, start:end] = np.arange(end - start)
    return inputs, segments, positions, spans


def test_logits_equal_those_of_transformers_with_padding_and_packing(family):
    _, theirs, _, logits = family
    inputs, *_, spans = _rows()
    for row, start, end in spans:
        expected = _their_logits(theirs, inputs[row, start:end])
        assert np.abs(expected).max() > 0.1, "the reference says something"
        np.testing.assert_allclose(logits[row, start:end], expected, atol=1e-4, rtol=0)


def test_a_saved_model_is_read_by_transformers_with_equal_logits(family, tmp_path):
    _, theirs, ours, _ = family
    save_hf(ours, tmp_path, max_shard_bytes=40_000)
    assert (tmp_path / "model.safetensors.index.json").exists(), "small shards were asked for"
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert type(again) is type(theirs)
    ids = _rows()[0][0]
    np.testing.assert_allclose(_their_logits(again, ids), _their_logits(theirs, ids), atol=1e-6)


def test_cached_decoding_equals_the_full_forward(family):
    """A prompt read in two pieces, then tokens one by one, against one pass over everything."""
    *_, ours, full = family
    ids = jnp.asarray(_rows()[0][:1])
    cache = init_cache(ours.config, 1, 96)
    found = []
    for start, end in [(0, 40), (40, 80), *((i, i + 1) for i in range(80, 90))]:
        logits, cache = _continue(*nnx.split(ours), cache, ids[:, start:end])
        found.append(logits)
    np.testing.assert_allclose(jnp.concatenate(found, axis=1)[0], full[0, :90], atol=1e-4, rtol=0)


def test_folder_of_torch_is_not_needed_to_load(family):
    folder, *_ = family
    assert {path.suffix for path in Path(folder).iterdir()} <= {".json", ".safetensors"}
