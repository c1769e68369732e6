"""A Sluice run as a checkpoint: its config.json, the weights of its last Orbax step, its tokenizer."""

import json
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from models import config as parts
from models import lora, quantize
from models.checkpoints.tokenizer import TextTokenizer, load_tokenizer_folder
from models.config import ModelConfig
from models.encoder import AnyModelConfig
from models.sharding import MeshConfig, make_mesh, param_shardings
from models.transformer import CausalLM
from models.tuning import AnyModel, Tuning, abstract_tuned, dotted_paths, trained


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
    """JSON values back to dataclasses of the model rooms: an object names its class under "type"."""
    if isinstance(value, dict):
        name = value.get("type", "")
        cls = next((getattr(module, name) for module in (parts, lora, quantize) if hasattr(module, name)), None)
        if not (isinstance(cls, type) and is_dataclass(cls)):
            raise ValueError(f"{origin} has a model part of type {value.get('type')!r}, which the model rooms lack")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(value.keys() - known - {"type"}):
            raise ValueError(f"{origin}: {cls.__name__} has no field {unknown[0]!r}; written by another version?")
        return cls(**{key: _value(item, origin) for key, item in value.items() if key != "type"})
    return tuple(_value(item, origin) for item in value) if isinstance(value, list) else value


def read_run_tuning(folder: Path) -> Tuning:
    """What the run trains of its model, out of RUN/config.json."""
    found, origin = read_run_json(folder), str(folder / "config.json")
    values = {name: found.get(name) for name in ("lora", "quantize")}
    parts = {name: _value(value, origin) for name, value in values.items() if value is not None}
    return Tuning(**parts, freeze=tuple((found.get("train") or {}).get("freeze") or ()))


def load_run(
    folder: Path,
    config: ModelConfig,
    *,
    mesh: Mesh | None = None,
    param_dtype: str | None = None,
    step: int | None = None,
) -> CausalLM:
    """`load_any_run` for a run that trained a causal model."""
    model = load_any_run(folder, config, mesh=mesh, param_dtype=param_dtype, step=step)
    assert isinstance(model, CausalLM)
    return model


def load_any_run(
    folder: Path,
    config: AnyModelConfig,
    *,
    mesh: Mesh | None = None,
    param_dtype: str | None = None,
    step: int | None = None,
) -> AnyModel:
    """The model of a run's checkpoint (None: the newest step), placed on `mesh` whatever mesh had saved it.

    The weights are those that the run evaluates itself: of what it trains their moving average where it keeps one (item
    `ema`). A run with adapters gives a model with adapters; the base is in its checkpoint, or read again from where the
    run started. Errors: ValueError where the run has no whole checkpoint, or the base is not the one it started from.
    """
    mesh = make_mesh(MeshConfig(), jax.devices()[:1]) if mesh is None else mesh
    tuning = read_run_tuning(folder)
    graph, state = nnx.split(abstract_tuned(config, tuning))
    shapes, placements = nnx.to_pure_dict(state), nnx.to_pure_dict(param_shardings(state, mesh))
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, placements
    )
    flat = dict(zip(dotted_paths(abstract).values(), jax.tree.leaves(abstract)))
    names = trained(shapes, tuning)
    ours = {path: leaf for path, leaf in flat.items() if ".".join(path) in names}
    others = {path: leaf for path, leaf in flat.items() if path not in ours}
    where = checkpoints_folder(folder)
    step = _newest(where) if step is None else step
    items = {path.name for path in (where / str(step)).iterdir()}
    item = "lora" if tuning.lora is not None else "params"
    if "ema" in items:
        loaded = _read_items(
            where, step, {"ema": _nested(ours)} | ({"params": abstract} if others and item == "params" else {})
        )
    else:
        loaded = _read_items(where, step, {item: abstract if item == "params" else _nested(ours)})
    values = _flat(loaded.get("params", {})) | _flat(loaded.get("lora", {})) | _flat(loaded.get("ema", {}))
    if item == "lora":
        if "params" in items:
            values |= _flat(_read_items(where, step, {"params": _nested(others)})["params"])
        else:
            assert isinstance(config, ModelConfig)
            values |= {path: leaf for path, leaf in _base(folder, step, config, mesh, tuning).items() if path in others}
    if param_dtype is not None:
        floating = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)  # noqa: E731
        values = {path: leaf.astype(param_dtype) if floating(leaf) else leaf for path, leaf in values.items()}
    nnx.replace_by_pure_dict(state, _nested(values))
    return nnx.merge(graph, state)


def load_start(folder: Path) -> CausalLM:
    """The model of a run over a checkpoint before its first step: with its adapters as they began."""
    found, tuning, config = read_run_json(folder), read_run_tuning(folder), read_run_config(folder)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    graph, state = nnx.split(abstract_tuned(config, tuning))
    nnx.replace_by_pure_dict(state, _start(found, folder, config, mesh, tuning)[0])
    model = nnx.merge(graph, state)
    assert isinstance(model, CausalLM)
    return model


def checkpoints_folder(folder: Path) -> Any:
    """Where the checkpoints of a run lie: in it, or where its setting checkpoint.path put them (an `epath.Path`)."""
    from etils import epath

    path = (read_run_json(folder).get("checkpoint") or {}).get("path")
    return epath.Path(path if path and "://" in path else Path(path or folder / "checkpoints").resolve())


def _newest(where: Any) -> int:
    """The newest whole step of a run."""
    with _checkpointer(where) as checkpointer:
        if checkpointer.latest is None:
            raise ValueError(f"{where} has no whole checkpoint yet: train it further, or give another run")
        return checkpointer.latest.step


def _read_items(where: Any, step: int, items: dict[str, Any]) -> dict[str, Any]:
    """Some items of one checkpoint."""
    with _checkpointer(where) as checkpointer:
        try:
            return checkpointer.load_checkpointables(step, items)
        except Exception as error:  # Orbax raises many kinds; a user wants the sentence
            reason = str(error).strip().split("\n")[0][:200]
            raise ValueError(f"checkpoint {where / str(step)} could not be read: {reason}") from None


def _checkpointer(where: Any) -> Any:
    from orbax.checkpoint import v1 as ocp  # seconds to import, and only runs need it

    return ocp.training.Checkpointer(where)


def _base(folder: Path, step: int, config: ModelConfig, mesh: Mesh, tuning: Tuning) -> dict[tuple, Any]:
    """The weights under a run's adapters, read from where it started; ValueError where they have changed since."""
    found = read_run_json(folder)
    location = found["init_from"]
    params, fingerprint = _start(found, folder, config, mesh, tuning)
    known = _read_items(checkpoints_folder(folder), step, {"meta": None})["meta"]["identity"]["base"]
    check_same_base(folder, location, known, fingerprint)
    return _flat(params)


def check_same_base(folder: Path, location: str, known: str | None, found: str) -> None:
    """ValueError where the weights under a run's adapters are not those that it was trained on, by fingerprint."""
    if known != found:
        raise ValueError(
            f"{folder} was trained on other weights than {location} holds now (fingerprint {known}, found {found}): "
            "bring the old ones back"
        )


def _start(
    found: dict[str, Any], folder: Path, config: ModelConfig, mesh: Mesh, tuning: Tuning
) -> tuple[dict[str, Any], str]:
    """All parameters that a run began with, and the fingerprint of the checkpoint under them."""
    from models.extend import load_extended  # a run may start from a run: this module loads, and is loaded by it

    seed = found["train"]["seed"]
    return load_extended(found["init_from"], config, mesh, tuning, folder / "tokenizer", seed=seed)


def _flat(tree: dict[str, Any]) -> dict[tuple, Any]:
    """Leaves of nested dicts by path."""
    return dict(zip(dotted_paths(tree).values(), jax.tree.leaves(tree)))


def _nested(flat: dict[tuple, Any]) -> dict[str, Any]:
    """Nested dicts of leaves by path."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        inner = tree
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = leaf
    return tree


def run_tokenizer(folder: Path) -> TextTokenizer | None:
    """The copy of the tokenizer in a run. Documents were trained as BOS + ids + EOS, so prompts begin with BOS."""
    where = folder / "tokenizer"
    return load_tokenizer_folder(where, prefix_bos=True) if (where / "tokenizer.json").exists() else None
