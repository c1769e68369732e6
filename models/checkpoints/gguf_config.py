"""Model configs out of GGUF metadata, and back. Key names are llama.cpp's (gguf-py/gguf/constants.py)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from models.checkpoints.gguf_file import GgufFile
from models.checkpoints.llama import repeating
from models.checkpoints.names import GGUF_LLAMA, GGUF_NEOX, Rule
from models.config import Attention, Block, Embedding, Gated, LinearScaling, ModelConfig, RMSNorm, Rotary

TABLES: Mapping[str, Mapping[str, Rule]] = {
    "llama": GGUF_LLAMA,
    "qwen2": GGUF_NEOX,
    "qwen3": GGUF_NEOX,
}


def gguf_table(architecture: str) -> Mapping[str, Rule]:
    """The names of an architecture's tensors; ValueError where it is not known."""
    if architecture not in TABLES:
        raise ValueError(f"GGUF architecture {architecture!r} is not known; Sluice reads {', '.join(TABLES)}")
    return TABLES[architecture]


def gguf_config(file: GgufFile) -> ModelConfig:
    """The `ModelConfig` that a GGUF file's metadata describes."""
    gguf_table(file.architecture)
    heads, dim = file.require("attention.head_count"), file.require("embedding_length")
    norm = RMSNorm(eps=_short(file.require("attention.layer_norm_rms_epsilon")))
    shapes = file.shapes()
    head_dim = file.get("attention.key_length", dim // heads)
    return ModelConfig(
        vocab_size=shapes["token_embd.weight"][0] if "token_embd.weight" in shapes else file.require("vocab_size"),
        num_layers=file.require("block_count"),
        embed_dim=dim,
        num_heads=heads,
        num_kv_heads=file.get("attention.head_count_kv", heads),
        head_dim=head_dim,
        mlp_dim=file.require("feed_forward_length"),
        norm=norm,
        attention=Attention(
            qk_norm=norm if "blk.0.attn_q_norm.weight" in shapes else None,
            qkv_bias="blk.0.attn_q.bias" in shapes,
            out_bias="blk.0.attn_output.bias" in shapes,
        ),
        mlp=Gated(),
        embedding=Embedding(tied="output.weight" not in shapes, max_positions=file.get("context_length")),
        pattern=repeating([Block(window=file.get("attention.sliding_window"), rotary=_rotary(file, head_dim))]),
    )


def _rotary(file: GgufFile, head_dim: int) -> Rotary:
    if "rope_freqs.weight" in file.shapes():
        raise ValueError(
            f"{file.path} scales its rotary positions by a table (rope_freqs, Llama 3.1); "
            "load the Hugging Face folder of the model, whose config names the scaling"
        )
    kind = file.get("rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise ValueError(f"{file.path} asks for rotary scaling {kind!r}; known are none and linear")
    scaling = LinearScaling(factor=file.require("rope.scaling.factor")) if kind == "linear" else None
    rotated = file.get("rope.dimension_count", head_dim)
    return Rotary(theta=file.get("rope.freq_base", 10_000.0), fraction=rotated / head_dim, scaling=scaling)


def _short(value: float) -> float:
    """A float32 as the decimal that was meant: 9.999999747378752e-06 is 1e-05."""
    return float(f"{value:.6g}")


def gguf_metadata(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """The architecture and its metadata for a model that GGUF can hold; ValueError where it cannot.

    Llama, Mistral-like windows over all layers, Qwen2 (q/k/v bias) and Qwen3 (q/k norm) can be written.
    """
    attention = config.attention
    wanted = "qwen3" if attention.qk_norm else "qwen2" if attention.qkv_bias and not attention.out_bias else "llama"
    rotary = config.pattern[0].rotary
    meant = ModelConfig(
        **{name: getattr(config, name) for name in _SIZES},
        norm=RMSNorm(eps=config.norm.eps),
        attention=Attention(
            qk_norm=RMSNorm(eps=config.norm.eps) if wanted == "qwen3" else None,
            qkv_bias=attention.qkv_bias,
            out_bias=attention.out_bias,
        ),
        embedding=Embedding(tied=config.embedding.tied, max_positions=config.embedding.max_positions),
        pattern=repeating([Block(window=config.pattern[0].window, rotary=rotary)]),
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        execution=config.execution,
    )
    same = dataclasses.replace(config, pattern=repeating(config.blocks))
    scaling = None if rotary is None else rotary.scaling
    if (
        rotary is None
        or not isinstance(scaling, LinearScaling | None)
        or meant != same
        or not math.isclose(config.query_scale, config.head_dim**-0.5)
    ):
        raise ValueError("GGUF is written for models built as Llama, Qwen2 or Qwen3 only; save a Hugging Face folder")
    found: dict[str, Any] = {
        "block_count": config.num_layers,
        "context_length": config.embedding.max_positions or 2048,
        "embedding_length": config.embed_dim,
        "feed_forward_length": config.mlp_dim,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm.eps,
        "rope.freq_base": rotary.theta,
        "rope.dimension_count": int(config.head_dim * rotary.fraction),
        "vocab_size": config.vocab_size,
    }
    if isinstance(scaling, LinearScaling):
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
    if config.pattern[0].window is not None:
        found["attention.sliding_window"] = config.pattern[0].window
    return wanted, found


_SIZES = ("vocab_size", "num_layers", "embed_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")
