"""Config translation of Llama and its relatives: Llama 2 and 3, Mistral, Qwen2, Qwen3, SmolLM2 and SmolLM3.

Key names are those of transformers 5; older spellings (`rope_theta`, `rope_scaling` at the top) are read too.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from models.config import (
    Activation,
    Attention,
    Block,
    Embedding,
    Gated,
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    RMSNorm,
    Rotary,
)

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
WINDOWED, FULL = "sliding_attention", "full_attention"  # entries of `layer_types`
Json = Mapping[str, Any]


def repeating(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """The shortest pattern that gives these blocks when repeated."""
    period = next(p for p in range(1, len(blocks) + 1) if all(b == blocks[i % p] for i, b in enumerate(blocks)))
    return tuple(blocks[:period])


def rotary_of(parameters: Json, theta: float) -> Rotary:
    """`rope_parameters` (or the older `rope_scaling`) as a `Rotary`; ValueError on a scaling that is not known."""
    theta = float(parameters.get("rope_theta", theta))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    fraction = float(parameters.get("partial_rotary_factor", 1.0))
    if kind == "default":
        return Rotary(theta=theta, fraction=fraction)
    if kind == "linear":
        return Rotary(theta=theta, fraction=fraction, scaling=LinearScaling(factor=float(parameters["factor"])))
    if kind == "llama3":
        scaling = Llama3Scaling(
            factor=float(parameters["factor"]),
            low_freq_factor=float(parameters["low_freq_factor"]),
            high_freq_factor=float(parameters["high_freq_factor"]),
            original_positions=int(parameters["original_max_position_embeddings"]),
        )
        return Rotary(theta=theta, fraction=fraction, scaling=scaling)
    raise ValueError(f"rotary scaling {kind!r} is not supported; known are default, linear and llama3")


def rotary_json(rotary: Rotary) -> dict[str, Any]:
    """`rope_parameters` of a `Rotary`."""
    found: dict[str, Any] = {"rope_theta": rotary.theta, "rope_type": "default"}
    if rotary.fraction != 1.0:
        found["partial_rotary_factor"] = rotary.fraction
    if isinstance(rotary.scaling, LinearScaling):
        found |= {"rope_type": "linear", "factor": rotary.scaling.factor}
    if isinstance(rotary.scaling, Llama3Scaling):
        found |= {
            "rope_type": "llama3",
            "factor": rotary.scaling.factor,
            "low_freq_factor": rotary.scaling.low_freq_factor,
            "high_freq_factor": rotary.scaling.high_freq_factor,
            "original_max_position_embeddings": rotary.scaling.original_positions,
        }
    return found


def read_rotary(config: Json, theta: float = 10_000.0) -> Rotary:
    """The rotary embedding of a config; theta: where it names none."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return rotary_of(parameters, config.get("rope_theta", theta))


def sizes(config: Json) -> dict[str, Any]:
    """The sizes of a `ModelConfig`, by our names."""
    heads, dim = config["num_attention_heads"], config["hidden_size"]
    return {
        "vocab_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "embed_dim": dim,
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or dim // heads,
        "mlp_dim": config["intermediate_size"],
    }


def sizes_json(config: ModelConfig) -> dict[str, Any]:
    """What every family's config.json says of sizes and norms, by transformers' names."""
    found: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_dim,
        "rms_norm_eps": config.norm.eps,
        "tie_word_embeddings": config.embedding.tied,
        "dtype": "float32",
    }
    if config.embedding.max_positions is not None:
        found["max_position_embeddings"] = config.embedding.max_positions
    return found


def activation(name: str) -> Activation:
    """Our name of an activation; ValueError for one that is not supported."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not supported; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def activation_name(activation: Activation) -> str:
    """transformers' name of an activation."""
    return {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}[activation]


def _llama_like(config: Json, *, tied: bool, attention: Attention, pattern: Sequence[Block]) -> ModelConfig:
    return ModelConfig(
        **sizes(config),
        norm=RMSNorm(eps=config.get("rms_norm_eps", 1e-6)),
        attention=attention,
        mlp=Gated(activation=activation(config.get("hidden_act", "silu")), bias=config.get("mlp_bias", False)),
        embedding=Embedding(
            tied=config.get("tie_word_embeddings", tied), max_positions=config.get("max_position_embeddings")
        ),
        pattern=repeating(pattern),
    )


def layer_types(config: Json, default: Sequence[str]) -> list[str]:
    """Each layer's kind of attention, where the config says it; else the default."""
    return list(config.get("layer_types") or default)


def windows(config: Json, types: Sequence[str]) -> list[int | None]:
    """Each layer's window in tokens; None: it sees everything."""
    window = config.get("sliding_window")
    return [window if kind == WINDOWED else None for kind in types]


def read_llama(config: Json) -> ModelConfig:
    """The config of a `LlamaConfig`."""
    bias = config.get("attention_bias", False)
    attention = Attention(qkv_bias=bias, out_bias=bias)
    return _llama_like(config, tied=False, attention=attention, pattern=[Block(rotary=read_rotary(config))])


def write_llama(config: ModelConfig) -> dict[str, Any]:
    """config.json of a Llama, without model_type and architectures."""
    rotary = config.pattern[0].rotary
    return sizes_json(config) | {
        "hidden_act": activation_name(config.mlp.activation),
        "rope_parameters": rotary_json(rotary) if rotary is not None else None,
        "attention_bias": config.attention.out_bias,
        "mlp_bias": config.mlp.bias,
    }


def read_mistral(config: Json) -> ModelConfig:
    """The config of a `MistralConfig`: a Llama, all layers with a window where it has one."""
    window = config.get("sliding_window")
    pattern = [Block(window=window, rotary=read_rotary(config))]
    return _llama_like(config, tied=False, attention=Attention(), pattern=pattern)


def write_mistral(config: ModelConfig) -> dict[str, Any]:
    """As `write_llama`, with the window."""
    return write_llama(config) | {"sliding_window": config.pattern[0].window}


def _qwen_pattern(config: Json) -> list[Block]:
    layers = config["num_hidden_layers"]
    used = config.get("use_sliding_window", False)
    first = config.get("max_window_layers", 28)  # layers before this one see everything
    types = layer_types(config, [WINDOWED if used and i >= first else FULL for i in range(layers)])
    rotary = read_rotary(config)
    return [Block(window=window if used else None, rotary=rotary) for window in windows(config, types)]


def write_qwen(config: ModelConfig) -> dict[str, Any]:
    """config.json of a Qwen 2 or 3."""
    windows = {block.window for block in config.blocks} - {None}
    found = write_llama(config) | {
        "use_sliding_window": bool(windows),
        "sliding_window": max(windows, default=None),  # type: ignore[type-var]
        "layer_types": [FULL if block.window is None else WINDOWED for block in config.blocks],
    }
    return {key: value for key, value in found.items() if key != "mlp_bias"}


def read_qwen2(config: Json) -> ModelConfig:
    """The config of a `Qwen2Config`: a Llama with biases on queries, keys and values."""
    return _llama_like(config, tied=False, attention=Attention(qkv_bias=True), pattern=_qwen_pattern(config))


def read_qwen3(config: Json) -> ModelConfig:
    """The config of a `Qwen3Config`: queries and keys are normed."""
    bias = config.get("attention_bias", False)
    norm = RMSNorm(eps=config.get("rms_norm_eps", 1e-6))
    attention = Attention(qk_norm=norm, qkv_bias=bias, out_bias=bias)
    found = _llama_like(config, tied=False, attention=attention, pattern=_qwen_pattern(config))
    return found if config.get("head_dim") else dataclasses.replace(found, head_dim=128)  # Qwen3Config's own default


def read_smollm3(config: Json) -> ModelConfig:
    """The config of a `SmolLM3Config`: some layers rotate nothing."""
    layers, bias = config["num_hidden_layers"], config.get("attention_bias", False)
    interval = config.get("no_rope_layer_interval", 4)
    rotates = config.get("no_rope_layers") or [int((i + 1) % interval != 0) for i in range(layers)]  # 1: it does rotate
    used = config.get("use_sliding_window", False)
    types = layer_types(config, [WINDOWED if used and not rotates[i] else FULL for i in range(layers)])
    rotary = read_rotary(config, theta=2_000_000.0)
    pattern = [Block(window=w, rotary=rotary if r else None) for w, r in zip(windows(config, types), rotates)]
    return _llama_like(config, tied=True, attention=Attention(qkv_bias=bias, out_bias=bias), pattern=pattern)


def write_smollm3(config: ModelConfig) -> dict[str, Any]:
    """config.json of a SmolLM3."""
    rotary = next((block.rotary for block in config.blocks if block.rotary is not None), None)
    return write_qwen(config) | {
        "mlp_bias": config.mlp.bias,
        "no_rope_layers": [int(block.rotary is not None) for block in config.blocks],
        "rope_parameters": rotary_json(rotary) if rotary is not None else None,
    }
