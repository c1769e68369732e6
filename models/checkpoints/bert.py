"""BERT and RoBERTa in Hugging Face folders: config.json and tensor names, both ways."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from models.checkpoints.listed import load_listed, save_listed
from models.checkpoints.location import read_object, resolve
from models.checkpoints.names import Rule
from models.encoder import EncoderConfig, EncoderLM

_LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "out": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
_NORMS = {"attention_norm": "attention.output.LayerNorm", "mlp_norm": "output.LayerNorm"}
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu"}


def _table(prefix: str, dense: str, norm: str, bias: str) -> Mapping[str, Rule]:
    embeddings = f"{prefix}.embeddings"
    table = {
        "embedding": Rule(f"{embeddings}.word_embeddings.weight"),
        "position_embedding": Rule(f"{embeddings}.position_embeddings.weight"),
        "type_embedding": Rule(f"{embeddings}.token_type_embeddings.weight"),
        "embedding_norm.scale": Rule(f"{embeddings}.LayerNorm.weight"),
        "embedding_norm.bias": Rule(f"{embeddings}.LayerNorm.bias"),
        "head.dense.kernel": Rule(f"{dense}.weight", transpose=True),
        "head.dense.bias": Rule(f"{dense}.bias"),
        "head.norm.scale": Rule(f"{norm}.weight"),
        "head.norm.bias": Rule(f"{norm}.bias"),
        "head.bias": Rule(bias),
    }
    for ours, theirs in _LAYER.items():
        table[f"layers.{{i}}.{ours}.kernel"] = Rule(f"{prefix}.encoder.layer.{{i}}.{theirs}.weight", transpose=True)
        table[f"layers.{{i}}.{ours}.bias"] = Rule(f"{prefix}.encoder.layer.{{i}}.{theirs}.bias")
    for ours, theirs in _NORMS.items():
        table[f"layers.{{i}}.{ours}.scale"] = Rule(f"{prefix}.encoder.layer.{{i}}.{theirs}.weight")
        table[f"layers.{{i}}.{ours}.bias"] = Rule(f"{prefix}.encoder.layer.{{i}}.{theirs}.bias")
    return table


_PREDICTIONS = "cls.predictions"
TABLES: Mapping[str, Mapping[str, Rule]] = {  # by model_type
    "bert": _table(
        "bert", f"{_PREDICTIONS}.transform.dense", f"{_PREDICTIONS}.transform.LayerNorm", f"{_PREDICTIONS}.bias"
    ),
    "roberta": _table("roberta", "lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
}
ARCHITECTURES = {"bert": "BertForMaskedLM", "roberta": "RobertaForMaskedLM"}
# Tied copies, buffers, and the heads of BERT's other pretraining task.
_IGNORED = re.compile(r"position_ids$|decoder\.(weight|bias)$|\.pooler\.|seq_relationship")


def read_bert_config(config: Mapping[str, Any], source: str, mask_id: int) -> EncoderConfig:
    """The `EncoderConfig` of a config.json; ValueError names what is not supported."""
    kind = config.get("model_type")
    if kind not in TABLES:
        raise ValueError(f"{source} is of the family {kind!r}; masked language models are read of {', '.join(TABLES)}")
    only = {"position_embedding_type": "absolute", "tie_word_embeddings": True, "is_decoder": False}
    for key, value in only.items():
        if config.get(key, value) not in (value, None):
            raise ValueError(f"{source} sets {key}={config[key]!r}; only {value!r} is supported")
    if config.get("hidden_act", "gelu") not in _ACTIVATIONS:
        raise ValueError(
            f"{source} sets hidden_act={config['hidden_act']!r}: expected one of {', '.join(_ACTIVATIONS)}"
        )
    try:
        pad_id = config.get("pad_token_id")
        pad_id = (1 if kind == "roberta" else 0) if pad_id is None else pad_id
        return EncoderConfig(
            vocab_size=config["vocab_size"],
            num_layers=config["num_hidden_layers"],
            embed_dim=config["hidden_size"],
            num_heads=config["num_attention_heads"],
            mlp_dim=config["intermediate_size"],
            max_positions=config["max_position_embeddings"],
            num_types=config.get("type_vocab_size", 2),
            position_offset=pad_id + 1 if kind == "roberta" else 0,
            activation=_ACTIVATIONS[config.get("hidden_act", "gelu")],  # type: ignore[arg-type]
            norm_eps=config.get("layer_norm_eps", 1e-12),
            mask_id=mask_id,
            pad_id=pad_id,
        )
    except KeyError as error:
        raise ValueError(f"{source} lacks {error.args[0]!r}, which a {kind} config.json needs") from None


def load_bert(location: str | Path, *, mask_id: int = 0) -> EncoderLM:
    """The model of a BERT or RoBERTa folder (or `hf:org/name`). mask_id: of its tokenizer."""
    folder = resolve(location).path
    config = read_object(folder / "config.json")
    ours = read_bert_config(config, str(folder), mask_id)
    table = TABLES[config["model_type"]]
    return load_listed(lambda: EncoderLM(ours, rngs=nnx.Rngs(0)), folder, table, ignored=_IGNORED)


def save_bert(model: EncoderLM, folder: Path) -> None:
    """Write the model as transformers reads it: RoBERTa where positions are offset, BERT otherwise."""
    config = model.config
    kind = "roberta" if config.position_offset else "bert"
    activation = {"gelu_tanh": "gelu_new"}.get(config.activation, config.activation)
    written = {
        "model_type": kind,
        "architectures": [ARCHITECTURES[kind]],
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.num_types,
        "hidden_act": activation,
        "layer_norm_eps": config.norm_eps,
        "pad_token_id": config.pad_id,
        "tie_word_embeddings": True,
    }
    save_listed(model, folder, TABLES[kind], written, frozenset())
