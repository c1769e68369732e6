"""A model for a tokenizer with more pieces: each new row of its tables is the mean of the rows of the old pieces.

Legend: V vocabulary, N new pieces, D embed.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from models.checkpoints.load import checkpoint_config, load_tokenizer
from models.checkpoints.location import resolve
from models.checkpoints.tokenizer import TextTokenizer, load_tokenizer_folder
from models.checkpoints.tuned import load_tuned
from models.encoder import AnyModelConfig, EncoderConfig
from models.transformer import CausalLM, abstract_model
from models.tuning import Tuning

Parents = Sequence[Sequence[int]]  # the old pieces of each new one


def parents_of(old: TextTokenizer, new: TextTokenizer) -> list[list[int]]:
    """For every id that `new` has beyond those of `old`: the ids into which `old` cuts the same piece.

    Errors: ValueError where `new` is no extension of `old`: an old id means something else there.
    """
    for token in range(old.vocab_size):
        if old.backend.id_to_token(token) != new.backend.id_to_token(token):
            raise ValueError(
                f"the dataset's tokenizer is no extension of the checkpoint's: id {token} is "
                f"{new.backend.id_to_token(token)!r} there and {old.backend.id_to_token(token)!r} in the checkpoint"
            )
    fresh = range(old.vocab_size, new.vocab_size)
    return [[part.id for part in old.backend.model.tokenize(new.backend.id_to_token(token))] for token in fresh]


def extended_rows(table_VD: Float[Array, "V D"], parents: Parents) -> Float[Array, "W D"]:
    """The table with a row more for each new piece: the mean of its parents' rows (Hewitt 2021), in float32."""
    width = max(map(len, parents))
    ids_NP, mask_NP = np.zeros((len(parents), width), np.int32), np.zeros((len(parents), width, 1), np.float32)
    for row, ids in enumerate(parents):
        ids_NP[row, : len(ids)], mask_NP[row, : len(ids)] = ids, 1 / len(ids)
    rows_ND = (table_VD[ids_NP].astype(jnp.float32) * mask_NP).sum(1)
    return jnp.concatenate([table_VD, rows_ND.astype(table_VD.dtype)])


def extended_params(params: dict[str, Any], parents: Parents) -> dict[str, Any]:
    """The parameters with longer token tables, the output's too where it is a table of its own."""
    params = params | {"embedding": extended_rows(params["embedding"], parents)}
    head = params.get("lm_head")
    if head is not None:
        params["lm_head"] = head | {"kernel": extended_rows(head["kernel"].T, parents).T}
    return params


def extend_model(model: CausalLM, parents: Parents) -> CausalLM:
    """The model with a row more for each new piece; the old ids' embeddings and logits are what they were."""
    config = dataclasses.replace(model.config, vocab_size=model.config.vocab_size + len(parents))
    params = extended_params(nnx.to_pure_dict(nnx.state(model)), parents)
    graph, state = nnx.split(abstract_model(config))
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def load_extended(
    location: str | Path, config: AnyModelConfig, mesh: Mesh, tuning: Tuning, tokenizer: Path, *, seed: int
) -> tuple[dict[str, Any], str]:
    """`load_tuned`; where `config` has a larger vocabulary than the checkpoint, its tables grow to the tokenizer's.

    tokenizer: the folder of the dataset's tokenizer, which must be the checkpoint's with more pieces.
    Errors: ValueError as of `load_tuned` and `parents_of`, for an encoder, and where the three vocabularies do not fit.
    """
    if isinstance(config, EncoderConfig):
        raise ValueError(f"init_from {location}: an encoder starts from random weights: set init_from=None")
    where = resolve(location)
    rows = checkpoint_config(where).vocab_size
    if config.vocab_size <= rows:
        return load_tuned(location, config, mesh, tuning, seed=seed)
    old, new = load_tokenizer(where), load_tokenizer_folder(tokenizer)
    if old is None or (old.vocab_size, new.vocab_size) != (rows, config.vocab_size):
        raise ValueError(
            f"model.vocab_size={config.vocab_size} is more than the {rows} rows of {location}: rows are added only for "
            f"a tokenizer with as many pieces that extends the checkpoint's; the dataset's has {new.vocab_size}"
        )
    parents = parents_of(old, new)
    params, fingerprint = load_tuned(location, dataclasses.replace(config, vocab_size=rows), mesh, tuning, seed=seed)
    if any(name.endswith("_lora") and name.startswith(("embedding", "lm_head")) for name in params):
        raise ValueError("tables that grow cannot have adapters: leave embedding and lm_head out of lora.targets")
    grown = extended_params(params, parents)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
    print(f"{len(parents):,} new rows of the token table are the mean of the rows of their old pieces", flush=True)
    return jax.device_put(grown, shardings), fingerprint
