"""MarianMT in Hugging Face folders: config.json, generation_config.json, tensor names, both ways."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from models.checkpoints.listed import load_listed, save_listed
from models.checkpoints.location import read_object, resolve
from models.checkpoints.names import Rule
from models.seq2seq import Seq2SeqConfig, Seq2SeqLM
from models.seq2seq_search import SearchConfig


def _side(side: str) -> dict[str, Rule]:
    table: dict[str, Rule] = {}
    ours, theirs = f"{side}.{{i}}", f"model.{side}.layers.{{i}}"
    blocks = {"attention": "self_attn", **({"cross": "encoder_attn"} if side == "decoder" else {})}
    linears = {
        f"{block}.{name}": f"{other}.{name}_proj" for block, other in blocks.items() for name in ("q", "k", "v", "out")
    }
    for name, other in {**linears, "up": "fc1", "down": "fc2"}.items():
        table[f"{ours}.{name}.kernel"] = Rule(f"{theirs}.{other}.weight", transpose=True)
        table[f"{ours}.{name}.bias"] = Rule(f"{theirs}.{other}.bias")
    norms = {
        "mlp_norm": "final_layer_norm",
        **{f"{block}_norm": f"{other}_layer_norm" for block, other in blocks.items()},
    }
    for name, other in norms.items():
        table[f"{ours}.{name}.scale"] = Rule(f"{theirs}.{other}.weight")
        table[f"{ours}.{name}.bias"] = Rule(f"{theirs}.{other}.bias")
    return table


_BIAS = "final_logits_bias"
MARIAN: Mapping[str, Rule] = {
    "embedding": Rule("model.shared.weight"),
    "logits_bias": Rule(_BIAS),
    **_side("encoder"),
    **_side("decoder"),
}
_IGNORED = re.compile(r"embed_positions\.weight$|embed_tokens\.weight$|^lm_head\.weight$")
_ONLY = {
    "share_encoder_decoder_embeddings": True,
    "tie_word_embeddings": True,
    "normalize_before": False,
    "normalize_embedding": False,
    "add_final_layer_norm": False,
    "static_position_embeddings": True,
}
_GENERATION_ONLY: Mapping[str, Any] = {  # settings that change what a search gives, and the value that changes nothing
    "do_sample": False,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "diversity_penalty": 0.0,
    "num_beam_groups": 1,
    "forced_bos_token_id": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "force_words_ids": None,
    "constraints": None,
    "guidance_scale": None,
    "penalty_alpha": None,
    "stop_strings": None,
}


def read_marian_config(config: Mapping[str, Any], source: str) -> Seq2SeqConfig:
    """The `Seq2SeqConfig` of a config.json; ValueError names what is not supported."""
    if config.get("model_type") != "marian":
        raise ValueError(f"{source} is of the family {config.get('model_type')!r}; translators are read of marian")
    for key, value in _ONLY.items():
        if config.get(key, value) not in (value, None):
            raise ValueError(f"{source} sets {key}={config[key]!r}; only {value!r} is supported")
    activation = {"silu": "swish"}.get(
        config.get("activation_function", "gelu"), config.get("activation_function", "gelu")
    )
    eos = config.get("eos_token_id", 0)
    try:
        return Seq2SeqConfig(
            vocab_size=config["vocab_size"],
            embed_dim=config["d_model"],
            encoder_layers=config["encoder_layers"],
            decoder_layers=config["decoder_layers"],
            encoder_heads=config["encoder_attention_heads"],
            decoder_heads=config["decoder_attention_heads"],
            encoder_mlp_dim=config["encoder_ffn_dim"],
            decoder_mlp_dim=config["decoder_ffn_dim"],
            max_positions=config.get("max_position_embeddings", 1024),
            activation=activation,
            scale_embedding=config.get("scale_embedding", False),
            pad_id=config["pad_token_id"],
            eos_id=eos[0] if isinstance(eos, list) else eos,
            start_id=config.get("decoder_start_token_id", config["pad_token_id"]),
        )
    except KeyError as error:
        raise ValueError(f"{source} lacks {error.args[0]!r}, which a marian config.json needs") from None


def load_marian(location: str | Path) -> Seq2SeqLM:
    """The model of a MarianMT folder, or of `hf:Helsinki-NLP/opus-mt-en-fr`."""
    folder = resolve(location).path
    config = read_marian_config(read_object(folder / "config.json"), str(folder))
    return load_listed(lambda: Seq2SeqLM(config, rngs=nnx.Rngs(0)), folder, MARIAN, ignored=_IGNORED)


def search_config(location: str | Path) -> SearchConfig:
    """How the folder's own generation_config.json (in old folders config.json) says that its model is searched."""
    folder = resolve(location).path
    config = read_object(folder / "config.json")
    found = read_object(folder / "generation_config.json") or config
    for name, value in _GENERATION_ONLY.items():
        if found.get(name) not in (value, None):
            raise ValueError(f"{folder} sets {name}={found[name]!r} for its search; only {value!r} is supported")
    eos = config.get("eos_token_id")
    ends = eos if isinstance(eos, list) else [eos]
    if found.get("forced_eos_token_id") not in (None, ends[0]):
        raise ValueError(f"{folder} sets forced_eos_token_id={found['forced_eos_token_id']}; only its EOS is supported")
    banned, suppressed = found.get("bad_words_ids") or [], found.get("suppress_tokens") or []
    if any(len(words) != 1 for words in banned):
        raise ValueError(f"{folder} bans sequences of several tokens, which is not supported: {banned}")
    if found.get("early_stopping") not in (None, False, True):
        raise ValueError(f"{folder} sets early_stopping={found['early_stopping']!r}: expected true or false")
    names = ("num_beams", "max_length", "length_penalty", "early_stopping")
    plain = {name: found[name] for name in names if found.get(name) is not None}
    if found.get("max_new_tokens") is not None:
        plain["max_length"] = found["max_new_tokens"] + 1  # the start token
    return SearchConfig(
        **plain,
        banned=tuple(
            dict.fromkeys(token for token in (*(words[0] for words in banned), *suppressed) if token not in ends)
        ),
        renormalize=bool(found.get("renormalize_logits")),
        forced_eos=found.get("forced_eos_token_id") is not None,
    )


def save_marian(model: Seq2SeqLM, folder: Path, search: SearchConfig | None = None) -> None:
    """Write the model as transformers reads it, with how it is searched."""
    config = model.config
    search = search or SearchConfig()
    written = {
        "model_type": "marian",
        "architectures": ["MarianMTModel"],
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "decoder_vocab_size": config.vocab_size,
        "d_model": config.embed_dim,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "encoder_attention_heads": config.encoder_heads,
        "decoder_attention_heads": config.decoder_heads,
        "encoder_ffn_dim": config.encoder_mlp_dim,
        "decoder_ffn_dim": config.decoder_mlp_dim,
        "max_position_embeddings": config.max_positions,
        "activation_function": config.activation,
        "scale_embedding": config.scale_embedding,
        "pad_token_id": config.pad_id,
        "eos_token_id": config.eos_id,
        "decoder_start_token_id": config.start_id,
        "forced_eos_token_id": config.eos_id if search.forced_eos else None,
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
    }
    plain = dataclasses.asdict(search)
    generation = {name: plain[name] for name in ("num_beams", "max_length", "length_penalty", "early_stopping")} | {
        "bad_words_ids": [[token] for token in search.banned] or None,
        "forced_eos_token_id": config.eos_id if search.forced_eos else None,
        "renormalize_logits": search.renormalize,
        "pad_token_id": config.pad_id,
        "eos_token_id": config.eos_id,
        "decoder_start_token_id": config.start_id,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    save_listed(model, folder, MARIAN, written, frozenset({_BIAS}))
