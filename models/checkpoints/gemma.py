"""Config translation of Gemma 1, 2 and 3 (text): (1 + w) norms, scaled embedding, soft caps, local and global."""

import dataclasses
import math
from typing import Any

from models.checkpoints.llama import (
    FULL,
    WINDOWED,
    Json,
    activation,
    activation_name,
    layer_types,
    read_rotary,
    repeating,
    rotary_json,
    rotary_of,
    sizes,
    sizes_json,
    windows,
)
from models.config import Attention, Block, Embedding, Gated, ModelConfig, RMSNorm, Rotary

REFUSED = {"use_bidirectional_attention": False}
LOCAL_EVERY = 6  # Gemma 3: five local layers, then a global one


def optional_float(value: float | int | None) -> float | None:
    """JSON writes 50.0 as 50 at times."""
    return None if value is None else float(value)


def _gemma(config: Json, *, sandwich: bool, attention: Attention, pattern: list[Block]) -> ModelConfig:
    bias = config.get("attention_bias", False)
    name = config.get("hidden_activation") or config.get("hidden_act") or "gelu_pytorch_tanh"
    found = ModelConfig(
        **sizes({"head_dim": 256, **config}),
        norm=RMSNorm(eps=config.get("rms_norm_eps", 1e-6), offset=True, sandwich=sandwich),
        attention=dataclasses.replace(attention, qkv_bias=bias, out_bias=bias),
        mlp=Gated(activation=activation(name)),
        embedding=Embedding(
            tied=config.get("tie_word_embeddings", True),
            scale=math.sqrt(config["hidden_size"]),
            max_positions=config.get("max_position_embeddings"),
            logit_softcap=optional_float(config.get("final_logit_softcapping")) if sandwich else None,
        ),
        pattern=repeating(pattern),
    )
    return found


def read_gemma(config: Json) -> ModelConfig:
    """Gemma 1."""
    return _gemma(config, sandwich=False, attention=Attention(), pattern=[Block(rotary=read_rotary(config))])


def write_gemma(config: ModelConfig) -> dict[str, Any]:
    """config.json of Gemma 1."""
    rotary = config.pattern[0].rotary
    return sizes_json(config) | {
        "hidden_act": activation_name(config.mlp.activation),
        "hidden_activation": activation_name(config.mlp.activation),
        "rope_parameters": rotary_json(rotary) if rotary is not None else None,
        "attention_bias": config.attention.out_bias,
    }


def read_gemma2(config: Json) -> ModelConfig:
    """Gemma 2: soft caps, norms around each part, every other layer local."""
    config = {"final_logit_softcapping": 30.0, "sliding_window": 4096, **config}
    types = layer_types(config, [FULL if i % 2 else WINDOWED for i in range(config["num_hidden_layers"])])
    attention = Attention(
        softcap=optional_float(config.get("attn_logit_softcapping", 50.0)),
        query_scale=config.get("query_pre_attn_scalar", 256) ** -0.5,
    )
    rotary = read_rotary(config)
    pattern = [Block(window=window, rotary=rotary) for window in windows(config, types)]
    return _gemma(config, sandwich=True, attention=attention, pattern=pattern)


def write_gemma2(config: ModelConfig) -> dict[str, Any]:
    """config.json of Gemma 2."""
    scalar = config.query_scale**-2
    return write_gemma(config) | {
        "query_pre_attn_scalar": round(scalar) if math.isclose(scalar, round(scalar)) else scalar,
        "attn_logit_softcapping": config.attention.softcap,
        "final_logit_softcapping": config.embedding.logit_softcap,
        "sliding_window": max({block.window for block in config.blocks} - {None}, default=None),  # type: ignore[type-var]
        "layer_types": [FULL if block.window is None else WINDOWED for block in config.blocks],
    }


def read_gemma3(config: Json) -> ModelConfig:
    """Gemma 3, text: q/k norm, five local layers to a global one, each kind with its own rotary base."""
    every = config.get("sliding_window_pattern", LOCAL_EVERY)
    config = {"final_logit_softcapping": None, "sliding_window": 4096, **config}
    types = layer_types(config, [WINDOWED if (i + 1) % every else FULL for i in range(config["num_hidden_layers"])])
    local, full = _gemma3_rotaries(config)
    attention = Attention(
        qk_norm=RMSNorm(eps=config.get("rms_norm_eps", 1e-6), offset=True),
        softcap=optional_float(config.get("attn_logit_softcapping")),
        query_scale=config.get("query_pre_attn_scalar", 256) ** -0.5,
    )
    pattern = [Block(window=w, rotary=local if t == WINDOWED else full) for w, t in zip(windows(config, types), types)]
    return _gemma(config, sandwich=True, attention=attention, pattern=pattern)


def _gemma3_rotaries(config: Json) -> tuple[Rotary, Rotary]:
    parameters = config.get("rope_parameters") or {}
    if WINDOWED in parameters or FULL in parameters:
        local, full = parameters.get(WINDOWED) or {}, parameters.get(FULL) or {}
        return rotary_of(local, 10_000.0), rotary_of(full, 1_000_000.0)
    full = {"rope_theta": config.get("rope_theta", 1_000_000.0), **(config.get("rope_scaling") or {})}
    return Rotary(theta=float(config.get("rope_local_base_freq", 10_000.0))), rotary_of(full, 1_000_000.0)


def write_gemma3(config: ModelConfig) -> dict[str, Any]:
    """config.json of Gemma 3 (text)."""
    rotaries = {FULL if block.window is None else WINDOWED: block.rotary for block in config.blocks}
    return write_gemma2(config) | {
        "rope_parameters": {kind: rotary_json(rotary) for kind, rotary in rotaries.items() if rotary is not None}
    }
