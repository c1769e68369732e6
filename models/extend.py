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


def same_pieces(location: str | Path, old: TextTokenizer, new: TextTokenizer) -> None:
    """Refuse (ValueError, one line) a tokenizer of which an id means something else than in the checkpoint's, `old`.

    Ids that only one of them has are no matter here: pieces that are new, and holes in a vocabulary.
    """
    for token in range(min(old.vocab_size, new.vocab_size)):
        here, there = new.backend.id_to_token(token), old.backend.id_to_token(token)
        if here != there and None not in (here, there):
            raise ValueError(
                f"the dataset's tokenizer is no extension of the checkpoint's: id {token} is {here!r} in the dataset "
                f"and {there!r} in init_from={location}: set data.tokenizer=CheckpointTokenizer(location='{location}'),"
                " or start from weights that were trained with the dataset's tokenizer"
            )


def check_same_pieces(location: str | Path, tokenizer: Path) -> None:
    """`same_pieces` of the folder of a dataset's tokenizer; a checkpoint without a tokenizer cannot be compared."""
    old = load_tokenizer(resolve(location))
    if old is not None:
        same_pieces(location, old, load_tokenizer_folder(tokenizer))


def parents_of(old: TextTokenizer, new: TextTokenizer, first: int) -> list[list[int]]:
    """For every id of `new` from `first` on: the ids into which `old` cuts the same piece; none for a hole."""
    fresh = (new.backend.id_to_token(token) or "" for token in range(first, new.vocab_size))
    return [[part.id for part in old.backend.model.tokenize(piece)] for piece in fresh]


def extended_rows(table_VD: Float[Array, "V D"], parents: Parents, first: int) -> Float[Array, "W D"]:
    """The table with means of the parents' rows (Hewitt 2021) from row `first` on, made in float32.

    Rows of the table beyond those of the new pieces stay: padding that no id uses.
    """
    width = max(map(len, parents))
    ids_NP, mask_NP = np.zeros((len(parents), width), np.int32), np.zeros((len(parents), width, 1), np.float32)
    for row, ids in enumerate(parents):
        ids_NP[row, : len(ids)], mask_NP[row, : len(ids)] = ids, 1 / max(1, len(ids))
    rows_ND = (table_VD[ids_NP].astype(jnp.float32) * mask_NP).sum(1).astype(table_VD.dtype)
    return jnp.concatenate([table_VD[:first], rows_ND, table_VD[first + len(parents) :]])


def extended_params(params: dict[str, Any], parents: Parents, first: int) -> dict[str, Any]:
    """The parameters with new rows in the token tables, the output's too where it is a table of its own."""
    params = params | {"embedding": extended_rows(params["embedding"], parents, first)}
    head = params.get("lm_head")
    if head is not None:
        params["lm_head"] = head | {"kernel": extended_rows(head["kernel"].T, parents, first).T}
    return params


def extend_model(model: CausalLM, parents: Parents) -> CausalLM:
    """The model with a row more for each new piece; the old ids' embeddings and logits are what they were."""
    config = dataclasses.replace(model.config, vocab_size=model.config.vocab_size + len(parents))
    params = extended_params(nnx.to_pure_dict(nnx.state(model)), parents, model.config.vocab_size)
    graph, state = nnx.split(abstract_model(config))
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def load_extended(
    location: str | Path, config: AnyModelConfig, mesh: Mesh, tuning: Tuning, tokenizer: Path, *, seed: int
) -> tuple[dict[str, Any], str]:
    """`load_tuned`, once the dataset's tokenizer is known to be the checkpoint's, or that with more pieces.

    More pieces get rows of their own: after the table, which grows to `config.vocab_size`, or where it was padded.
    tokenizer: the folder of the dataset's tokenizer. A checkpoint without a tokenizer is taken at its word.
    Errors: ValueError as of `load_tuned` and `same_pieces`, for an encoder, and where vocabularies do not fit.
    """
    if isinstance(config, EncoderConfig):
        raise ValueError(f"init_from {location}: an encoder starts from random weights: set init_from=None")
    where = resolve(location)
    rows = checkpoint_config(where).vocab_size
    old, new = load_tokenizer(where), load_tokenizer_folder(tokenizer)
    if old is None:
        print(f"init_from {location} has no tokenizer: that its ids are the dataset's is not checked", flush=True)
    else:
        same_pieces(location, old, new)
    if config.vocab_size > rows and (old is None or new.vocab_size != config.vocab_size):
        raise ValueError(
            f"model.vocab_size={config.vocab_size} is more than the {rows} rows of {location}: rows are added only for "
            f"a tokenizer with as many pieces that extends the checkpoint's; the dataset's has {new.vocab_size}"
        )
    first = rows if old is None else min(rows, old.vocab_size)
    small = dataclasses.replace(config, vocab_size=min(rows, config.vocab_size))
    params, fingerprint = load_tuned(location, small, mesh, tuning, seed=seed)
    if old is None or new.vocab_size <= first:
        return params, fingerprint
    if any(name.endswith("_lora") and name.startswith(("embedding", "lm_head")) for name in params):
        raise ValueError("tables that grow cannot have adapters: leave embedding and lm_head out of lora.targets")
    parents = parents_of(old, new, first)
    grown = extended_params(params, parents, first)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
    print(f"{len(parents):,} new rows of the token table are the mean of the rows of their old pieces", flush=True)
    return jax.device_put(grown, shardings), fingerprint
