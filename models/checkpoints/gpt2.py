"""Config translation of GPT-2: LayerNorm, learned positions, biases, a plain MLP."""

from typing import Any

from models.checkpoints.llama import Json, activation, activation_name
from models.config import Attention, Block, Embedding, LayerNorm, ModelConfig, Plain

REFUSED = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}


def read_gpt2(config: Json) -> ModelConfig:
    """GPT-2, any size."""
    dim, heads = config["n_embd"], config["n_head"]
    return ModelConfig(
        vocab_size=config["vocab_size"],
        num_layers=config["n_layer"],
        embed_dim=dim,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=dim // heads,
        mlp_dim=config.get("n_inner") or 4 * dim,
        norm=LayerNorm(eps=config.get("layer_norm_epsilon", 1e-5)),
        attention=Attention(qkv_bias=True, out_bias=True),
        mlp=Plain(activation=activation(config.get("activation_function", "gelu_new")), bias=True),
        embedding=Embedding(
            tied=config.get("tie_word_embeddings", True),
            learned_positions=True,
            max_positions=config.get("n_positions", 1024),
        ),
        pattern=(Block(rotary=None),),
    )


def write_gpt2(config: ModelConfig) -> dict[str, Any]:
    """config.json of GPT-2."""
    name = activation_name(config.mlp.activation)
    return {
        "vocab_size": config.vocab_size,
        "n_layer": config.num_layers,
        "n_embd": config.embed_dim,
        "n_head": config.num_heads,
        "n_inner": config.mlp_dim,
        "n_positions": config.embedding.max_positions,
        "layer_norm_epsilon": config.norm.eps,
        "activation_function": "gelu_new" if name == "gelu_pytorch_tanh" else name,
        "tie_word_embeddings": config.embedding.tied,
        "dtype": "float32",
    }
