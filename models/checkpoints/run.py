"""A Sluice run as a checkpoint: its config.json, the params item of its last Orbax step, its tokenizer."""

import json
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding

from models import config as parts
from models.checkpoints.tokenizer import TextTokenizer, load_tokenizer_folder
from models.config import ModelConfig
from models.sharding import param_shardings
from models.transformer import CausalLM, abstract_model


def read_run_json(folder: Path) -> dict[str, Any]:
    """RUN/config.json, its resolved config; ValueError where the folder is no run."""
    path = folder / "config.json"
    if not path.exists():
        raise ValueError(f"{folder} has checkpoints but no config.json: expected a run folder written by train.main")
    found = json.loads(path.read_text())
    found = found.get("config", found)
    if "model" not in found:
        raise ValueError(f"{path} has no model section: expected the config.json of a run")
    return found


def read_run_config(folder: Path) -> ModelConfig:
    """The model section of RUN/config.json, as a `ModelConfig`."""
    return typing.cast(ModelConfig, _value(read_run_json(folder)["model"], str(folder / "config.json")))


def read_run_seq_len(folder: Path) -> int | None:
    """Inputs of a row that the run trains on, tokens; None where its config does not say."""
    return read_run_json(folder).get("loader", {}).get("seq_len")


def _value(value: Any, origin: str) -> Any:
    """JSON values back to dataclasses of models.config: an object names its class under "type"."""
    if isinstance(value, dict):
        cls = getattr(parts, value.get("type", ""), None)
        if not (isinstance(cls, type) and is_dataclass(cls)):
            raise ValueError(f"{origin} has a model part of type {value.get('type')!r}, which models/config.py lacks")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(value.keys() - known - {"type"}):
            raise ValueError(f"{origin}: {cls.__name__} has no field {unknown[0]!r}; written by another version?")
        return cls(**{key: _value(item, origin) for key, item in value.items() if key != "type"})
    return tuple(_value(item, origin) for item in value) if isinstance(value, list) else value


def load_run(
    folder: Path,
    config: ModelConfig,
    *,
    mesh: Mesh | None = None,
    param_dtype: str | None = None,
    step: int | None = None,
) -> CausalLM:
    """The model of a run's checkpoint (None: the newest step), placed on `mesh` whatever mesh had saved it.

    The weights are those that the run evaluates itself: their moving average where it keeps one (item `ema`), else
    `params`. Nothing else is read. Errors: ValueError where the run has no whole checkpoint.
    """
    from orbax.checkpoint import v1 as ocp  # seconds to import, and only runs need it

    where = (folder / "checkpoints").resolve()
    graph, state = nnx.split(abstract_model(config))
    if mesh is None:
        placed: Any = jax.tree.map(lambda leaf: SingleDeviceSharding(jax.devices()[0]), state)
    else:
        placed = param_shardings(state, mesh)
    shapes, placements = nnx.to_pure_dict(state), nnx.to_pure_dict(placed)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=sharding), shapes, placements
    )
    with ocp.training.Checkpointer(where) as checkpointer:
        latest = checkpointer.latest
        if latest is None:
            raise ValueError(f"{folder} has no whole checkpoint yet: train it further, or give another run")
        chosen = latest.step if step is None else step
        item = "ema" if (where / str(chosen) / "ema").is_dir() else "params"
        try:
            params = checkpointer.load_checkpointables(chosen, {item: abstract})[item]
        except Exception as error:  # Orbax raises many kinds; a user wants the sentence
            reason = str(error).strip().split("\n")[0][:200]
            raise ValueError(f"checkpoint {where / str(chosen)} could not be read: {reason}") from None
    if param_dtype is not None:
        params = jax.tree.map(lambda leaf: leaf.astype(param_dtype), params)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def run_tokenizer(folder: Path) -> TextTokenizer | None:
    """The copy of the tokenizer in a run. Documents were trained as BOS + ids + EOS, so prompts begin with BOS."""
    where = folder / "tokenizer"
    return load_tokenizer_folder(where, prefix_bos=True) if (where / "tokenizer.json").exists() else None
