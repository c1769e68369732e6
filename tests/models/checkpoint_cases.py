"""A tiny Llama and its tokenizer, made without torch, for the tests of checkpoints and decoding."""

from pathlib import Path

import jax
import numpy as np
from flax import nnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from models.checkpoints.save import save_hf
from models.checkpoints.tokenizer import TextTokenizer
from models.config import Embedding, Execution, ModelConfig
from models.transformer import CausalLM

VOCAB = 264


def tiny_config(**changes) -> ModelConfig:
    """Two layers; sizes that eight devices divide. Random weights are made larger by `tiny_model`."""
    parts = {
        "vocab_size": VOCAB,
        "num_layers": 2,
        "embed_dim": 32,
        "num_heads": 8,
        "num_kv_heads": 8,
        "head_dim": 8,
        "mlp_dim": 64,
        "embedding": Embedding(tied=True, max_positions=256),
        "execution": Execution(scan_unroll=1),
        "dtype": "float32",
    }
    return ModelConfig(**(parts | changes))


def tiny_model(seed: int = 0, **changes) -> CausalLM:
    """Random weights of standard deviation 0.2, norms around 1: outputs vary enough to show any mistake."""
    graph, state = nnx.split(CausalLM(tiny_config(**changes), rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(seed)
    draw = lambda leaf: leaf + 0.2 * jax.numpy.asarray(rng.standard_normal(leaf.shape), leaf.dtype)  # noqa: E731
    return nnx.merge(graph, jax.tree.map(draw, state))


def byte_tokenizer() -> TextTokenizer:
    """A byte-level tokenizer without merges: ids 0 to 2 are special, then one id a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return TextTokenizer(backend=backend, bos_id=1, eos_id=2, pad_id=None, stop_ids=(2,))


def save_tiny(folder: Path, **changes) -> CausalLM:
    """Write a tiny Hugging Face folder; returns its model."""
    model = tiny_model(**changes)
    save_hf(model, folder, tokenizer=byte_tokenizer())
    return model
