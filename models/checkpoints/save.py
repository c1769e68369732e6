"""A model out as a Hugging Face folder (config.json, sharded safetensors, tokenizer) that transformers loads.

Tensors leave the devices one layer at a time. What no family has a word for, but an equal model can say, is rewritten
first (`expressible`): norms without parameters get ones, a norm on the embedding is folded into an untied table.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.checkpoints.families import write_config
from models.checkpoints.names import HF_TABLES, Rule, select
from models.checkpoints.tensors import MAX_SHARD_BYTES, Entry, write_safetensors
from models.checkpoints.tokenizer import TextTokenizer
from models.checkpoints.weights import parameter_paths
from models.config import ModelConfig, RMSNorm
from models.transformer import CausalLM, abstract_model


def save_hf(
    model: CausalLM,
    folder: Path,
    *,
    tokenizer: TextTokenizer | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[Path]:
    """Write the model as `transformers` reads it; returns the weight files.

    dtype: of the stored tensors; None: what the weights are. Errors: ValueError where no family expresses the model.
    """
    model = expressible(model)
    config = write_config(model.config)
    stored = np.dtype(dtype or model.config.param_dtype)
    config |= {"dtype": stored.name, **special_ids(tokenizer)}
    folder.mkdir(parents=True, exist_ok=True)
    table = HF_TABLES[config["model_type"]]
    paths = write_safetensors(folder, hf_entries(model, table, stored), max_shard_bytes)
    if tokenizer is not None:
        tokenizer.save(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")  # last: a folder with it is whole
    return paths


def special_ids(tokenizer: TextTokenizer | None) -> dict[str, Any]:
    """What a Hugging Face config says of the special tokens."""
    if tokenizer is None:
        return {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    stops = list(tokenizer.stop_ids) if len(tokenizer.stop_ids) > 1 else tokenizer.eos_id
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": stops, "pad_token_id": tokenizer.pad_id}


def hf_entries(model: CausalLM, table: Mapping[str, Rule], dtype: np.dtype) -> Iterator[Entry]:
    """Every tensor of the checkpoint: name, shape, dtype and how to get its values, layer after layer."""
    state = nnx.state(model)
    leaves = dict(nnx.to_flat_state(state))
    paths = parameter_paths(state)
    groups: dict[str, list[tuple[Rule, jax.Array]]] = {}
    for path, rule in select(table, paths).items():
        groups.setdefault(rule.name, []).append((rule, leaves[paths[path]].get_value()))
    for template, parts in groups.items():
        parts.sort(key=lambda part: part[0].part or (0, 0))
        for layer in range(model.config.num_layers) if parts[0][0].stacked else (None,):
            name = template if layer is None else template.replace("{i}", str(layer))
            shape = parts[0][0].shape(parts[0][1].shape[0 if layer is None else 1 :])
            yield name, shape, dtype, partial(_values, parts, layer, model.config, dtype)


def _values(parts: list[tuple[Rule, jax.Array]], layer: int | None, config: ModelConfig, dtype: np.dtype) -> np.ndarray:
    arrays = [np.asarray(leaf if layer is None else leaf[layer]) for _, leaf in parts]
    return parts[0][0].theirs(arrays, config).astype(dtype)


def expressible(model: CausalLM) -> CausalLM:
    """The same function in the words that model families have; the model itself where nothing needs to change."""
    config = model.config
    model = _with_norm_scales(model)
    if config.embedding.norm is not None:
        model = _with_folded_embedding_norm(model)
    return model


def _with_norm_scales(model: CausalLM) -> CausalLM:
    """Norms without parameters become norms with ones."""

    def scaled(norm: Any) -> Any:
        return dataclasses.replace(norm, scale=True) if isinstance(norm, RMSNorm) and not norm.scale else norm

    old = model.config
    attention = dataclasses.replace(old.attention, qk_norm=scaled(old.attention.qk_norm))
    embedding = dataclasses.replace(old.embedding, norm=scaled(old.embedding.norm))
    config = dataclasses.replace(old, norm=scaled(old.norm), attention=attention, embedding=embedding)
    if config == old:
        return model
    graph, state = nnx.split(abstract_model(config))
    known: dict[Any, Any] = dict(nnx.to_flat_state(nnx.state(model)))
    filled: dict[Any, Any] = {}
    for path, leaf in nnx.to_flat_state(state):
        ones = leaf.replace(jnp.ones(leaf.get_value().shape, config.param_dtype))  # only scales can be new
        filled[path] = known.get(path, ones)
    return nnx.merge(graph, nnx.from_flat_state(filled))


def _with_folded_embedding_norm(model: CausalLM) -> CausalLM:
    """The norm of each token's embedding depends on the token alone: norm the table once, and untie the output."""
    old = model.config
    if old.embedding.learned_positions:
        raise ValueError("a norm over token and position embeddings together cannot be folded into a table")
    embedding = dataclasses.replace(old.embedding, norm=None, tied=False, scale=1.0)
    config = dataclasses.replace(old, embedding=embedding)
    graph, state = nnx.split(abstract_model(config))
    known: dict[Any, Any] = dict(nnx.to_flat_state(nnx.state(model)))
    table_VD = model.embedding.get_value().astype(jnp.float32)
    assert model.embedding_norm is not None
    normed_VD = model.embedding_norm(table_VD * old.embedding.scale)
    filled: dict[Any, Any] = {}
    for path, leaf in nnx.to_flat_state(state):
        if path == ("embedding",):
            filled[path] = leaf.replace(normed_VD.astype(old.param_dtype))
        elif path == ("lm_head", "kernel") and old.embedding.tied:
            filled[path] = leaf.replace(table_VD.T.astype(old.param_dtype))
        else:
            filled[path] = known[path]
    return nnx.merge(graph, nnx.from_flat_state(filled))
