"""GGUF architectures: how their metadata reads as a `ModelConfig`, and back. Key names are llama.cpp's.

An architecture is a reader and a writer here (keys: gguf-py/gguf/constants.py) and a table of names in
models.checkpoints.names. A writer may leave out what its architecture has no key for: what is written is read back and
compared (models.checkpoints.gguf_config).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from models.checkpoints.names import GGUF_GEMMA, GGUF_GPT2, GGUF_LLAMA, GGUF_NEOX, Rule
from models.config import (
    Attention,
    Block,
    Embedding,
    Gated,
    LayerNorm,
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    Plain,
    RMSNorm,
    Rotary,
)
from models.layers import rotary_frequencies

ROPE_FACTORS = "rope_freqs.weight"  # what each rotary frequency is divided by: how GGUF says Llama 3.1's scaling
LARGEST = {"gemma2": 46, "gemma3": 62}  # layers of the 27B models, whose queries llama.cpp scales by embed_dim / heads


@runtime_checkable
class Description(Protocol):
    """What a reader asks of a GGUF file (`GgufFile` is one)."""

    @property
    def architecture(self) -> str:
        """The family by llama.cpp's name."""
        ...

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the metadata under the architecture's prefix, or the default."""
        ...

    def require(self, key: str) -> Any:
        """As `get`; ValueError where it is not there."""
        ...

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor with its shape."""
        ...

    def view(self, name: str) -> np.ndarray:
        """A tensor's values."""
        ...


@dataclass(frozen=True, kw_only=True)
class Written:
    """A GGUF file that is to be: metadata under the architecture's prefix, and tensors beside the parameters."""

    architecture: str
    values: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)
    names: frozenset[str] = frozenset()

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value."""
        return self.values.get(key, default)

    def require(self, key: str) -> Any:
        """A metadata value that must be there."""
        return self.values[key]

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor; the shapes of parameters are not known yet."""
        return dict.fromkeys(self.names, ()) | {name: array.shape for name, array in self.tensors.items()}

    def view(self, name: str) -> np.ndarray:
        """One of the further tensors."""
        return self.tensors[name]


def _short(value: float) -> float:
    """A float32 as the decimal that was meant: 9.999999747378752e-06 is 1e-05."""
    return float(f"{value:.6g}")


# ------------------------------------------------------------------------------------------------- what all share


def _sizes(file: Description) -> dict[str, Any]:
    heads, dim, shapes = file.require("attention.head_count"), file.require("embedding_length"), file.shapes()
    table = shapes.get("token_embd.weight")
    return {
        "vocab_size": table[0] if table else file.require("vocab_size"),
        "num_layers": file.require("block_count"),
        "embed_dim": dim,
        "num_heads": heads,
        "num_kv_heads": file.get("attention.head_count_kv", heads),
        "head_dim": file.get("attention.key_length", dim // heads),
        "mlp_dim": file.require("feed_forward_length"),
    }


def _sizes_values(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "block_count": config.num_layers,
        "context_length": config.embedding.max_positions or 2048,
        "embedding_length": config.embed_dim,
        "feed_forward_length": config.mlp_dim,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
    }


def _rotary(file: Description, head_dim: int) -> Rotary:
    rotary = Rotary(
        theta=float(file.get("rope.freq_base", 10_000.0)),
        fraction=file.get("rope.dimension_count", head_dim) / head_dim,
    )
    kind = file.get("rope.scaling.type", "none")
    if kind == "linear":
        return replace(rotary, scaling=LinearScaling(factor=float(file.require("rope.scaling.factor"))))
    if kind != "none":
        raise ValueError(f"rotary scaling {kind!r} of a GGUF file is not supported; known are none and linear")
    if ROPE_FACTORS in file.shapes():
        factors = np.asarray(file.view(ROPE_FACTORS), np.float32)
        rotary = replace(rotary, scaling=Llama3Scaling(factor=_short(float(factors.max()))))  # the rest is Llama 3.1's
        if factors.shape != (head_dim // 2,) or not np.allclose(rope_factors(rotary, head_dim), factors, rtol=1e-3):
            raise ValueError(f"the rotary factors of a GGUF file ({ROPE_FACTORS}) are not those of Llama 3.1's scaling")
    return rotary


def rope_factors(rotary: Rotary, head_dim: int) -> np.ndarray:
    """What the scaling divides each frequency by, float32 [head_dim / 2]."""
    plain = rotary_frequencies(replace(rotary, scaling=None), head_dim)
    return np.asarray(plain / rotary_frequencies(rotary, head_dim), np.float32)


def _rotary_values(rotary: Rotary | None, head_dim: int) -> dict[str, Any]:
    if rotary is None:
        raise ValueError("GGUF has no layers without positions")
    found: dict[str, Any] = {
        "rope.freq_base": rotary.theta,
        "rope.dimension_count": int(head_dim * rotary.fraction),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
    }
    if isinstance(rotary.scaling, LinearScaling):
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": rotary.scaling.factor}
    return found


# -------------------------------------------------------------------------------------------------- architectures


def _read_llama(file: Description) -> ModelConfig:
    """Llama and Mistral, Qwen2 (q/k/v bias), Qwen3 (q/k norm), SmolLM3 (every fourth layer without positions)."""
    sizes, shapes, name = _sizes(file), file.shapes(), file.architecture
    norm = RMSNorm(eps=_short(file.require("attention.layer_norm_rms_epsilon")))
    block = Block(window=file.get("attention.sliding_window"), rotary=_rotary(file, sizes["head_dim"]))
    return ModelConfig(
        **sizes,
        norm=norm,
        attention=Attention(
            qk_norm=norm if name == "qwen3" else None,
            qkv_bias=name == "qwen2" or "blk.0.attn_q.bias" in shapes,
            out_bias="blk.0.attn_output.bias" in shapes,
        ),
        mlp=Gated(),
        embedding=Embedding(tied="output.weight" not in shapes, max_positions=file.get("context_length")),
        pattern=(*[block] * 3, replace(block, rotary=None)) if name == "smollm3" else (block,),
    )


def _write_llama(config: ModelConfig) -> Written:
    block = config.pattern[0]
    values = _sizes_values(config) | _rotary_values(block.rotary, config.head_dim)
    values["attention.layer_norm_rms_epsilon"] = config.norm.eps
    if block.window is not None:  # llama.cpp passes the key over for these architectures
        if block.window < (config.embedding.max_positions or math.inf):
            raise ValueError(f"a window of {block.window} tokens is no part of these architectures in llama.cpp")
        values["attention.sliding_window"] = block.window
    tensors = {}
    if block.rotary is not None and isinstance(block.rotary.scaling, Llama3Scaling):
        tensors[ROPE_FACTORS] = rope_factors(block.rotary, config.head_dim)
    return Written(architecture="llama", values=values, tensors=tensors)


def _read_gpt2(file: Description) -> ModelConfig:
    tied, context = "output.weight" not in file.shapes(), file.require("context_length")
    return ModelConfig(
        **_sizes(file),
        norm=LayerNorm(eps=_short(file.require("attention.layer_norm_epsilon"))),
        attention=Attention(qkv_bias=True, out_bias=True),
        mlp=Plain(bias=True),
        embedding=Embedding(tied=tied, learned_positions=True, max_positions=context),
        pattern=(Block(rotary=None),),
    )


def _write_gpt2(config: ModelConfig) -> Written:
    if config.num_kv_heads != config.num_heads or config.head_dim * config.num_heads != config.embed_dim:
        raise ValueError("GPT-2 has as many key/value heads as heads, which fill the embedding")
    values = _sizes_values(config) | {"attention.layer_norm_epsilon": config.norm.eps}
    return Written(architecture="gpt2", values=values)


def _read_gemma(file: Description) -> ModelConfig:
    """Gemma 1, 2 (soft caps, every other layer local) and 3 (q/k norm, every sixth layer global)."""
    sizes, name, shapes = _sizes(file), file.architecture, file.shapes()
    norm = RMSNorm(eps=_short(file.require("attention.layer_norm_rms_epsilon")), offset=True, sandwich=name != "gemma")
    rotary, window = _rotary(file, sizes["head_dim"]), file.get("attention.sliding_window")
    pattern = {
        "gemma": (Block(rotary=rotary),),
        "gemma2": (Block(window=window, rotary=rotary), Block(rotary=rotary)),
        "gemma3": (
            *[Block(window=window, rotary=Rotary(theta=float(file.get("rope.freq_base_swa", 10_000.0))))] * 5,
            Block(rotary=rotary),
        ),
    }[name]
    large = sizes["num_layers"] == LARGEST.get(name)
    softcaps = name == "gemma2"
    return ModelConfig(
        **sizes,
        norm=norm,
        attention=Attention(
            qk_norm=RMSNorm(eps=norm.eps, offset=True) if name == "gemma3" else None,
            softcap=float(file.get("attn_logit_softcapping", 50.0)) if softcaps else None,
            query_scale=(sizes["embed_dim"] / sizes["num_heads"]) ** -0.5 if large else None,
        ),
        mlp=Gated(activation="gelu_tanh"),
        embedding=Embedding(
            tied="output.weight" not in shapes,
            scale=math.sqrt(sizes["embed_dim"]),
            max_positions=file.get("context_length"),
            logit_softcap=float(file.get("final_logit_softcapping", 30.0)) if softcaps else None,
        ),
        pattern=pattern,
    )


def _write_gemma(config: ModelConfig) -> Written:
    blocks = config.blocks
    full = next((block for block in blocks if block.window is None), blocks[-1])
    values = _sizes_values(config) | _rotary_values(full.rotary, config.head_dim)
    values["attention.layer_norm_rms_epsilon"] = config.norm.eps
    local = next((block for block in blocks if block.window is not None), None)
    if local is not None:
        values["attention.sliding_window"] = local.window
        if local.rotary is not None and local.rotary != full.rotary:
            values["rope.freq_base_swa"] = local.rotary.theta
    if config.attention.softcap is not None:
        values["attn_logit_softcapping"] = config.attention.softcap
    if config.embedding.logit_softcap is not None:
        values["final_logit_softcapping"] = config.embedding.logit_softcap
    return Written(architecture="gemma", values=values)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One general.architecture. `write` may give anything for a model that it cannot express: it is read back."""

    table: Mapping[str, Rule]
    read: Callable[[Description], ModelConfig]
    write: Callable[[ModelConfig], Written]


ARCHITECTURES: Mapping[str, Architecture] = {  # tried in this order where a model is written
    "qwen2": Architecture(table=GGUF_NEOX, read=_read_llama, write=_write_llama),
    "qwen3": Architecture(table=GGUF_NEOX, read=_read_llama, write=_write_llama),
    "llama": Architecture(table=GGUF_LLAMA, read=_read_llama, write=_write_llama),
    "smollm3": Architecture(table=GGUF_LLAMA, read=_read_llama, write=_write_llama),
    "gpt2": Architecture(table=GGUF_GPT2, read=_read_gpt2, write=_write_gpt2),
    "gemma": Architecture(table=GGUF_GEMMA, read=_read_gemma, write=_write_gemma),
    "gemma2": Architecture(table=GGUF_GEMMA, read=_read_gemma, write=_write_gemma),
    "gemma3": Architecture(table=GGUF_GEMMA, read=_read_gemma, write=_write_gemma),
}
