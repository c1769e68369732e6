"""A run that trained adapters as a checkpoint: its base, read again from where it came from, and what it trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from models.checkpoints.tuned import load_tuned
from models.config import ModelConfig
from models.lora import LoRA
from models.quantize import NF4, Int8Weights
from models.sharding import MeshConfig, make_mesh, param_shardings
from models.transformer import CausalLM
from models.tuning import Tuning, abstract_tuned, dotted_paths, trained


def run_tuning(run: Mapping[str, Any]) -> Tuning:
    """The tuning section of a run's resolved config (RUN/config.json)."""
    kinds = {kind.__name__: kind for kind in (LoRA, NF4, Int8Weights)}

    def value(found: Any) -> Any:
        if isinstance(found, dict):
            return kinds[found["type"]](**{name: value(part) for name, part in found.items() if name != "type"})
        return tuple(value(part) for part in found) if isinstance(found, list) else found

    return Tuning(**{name: value(run[name]) for name in ("lora", "quantize", "freeze") if run.get(name)})


def load_tuned_run(
    folder: Path, config: ModelConfig, run: Mapping[str, Any], *, mesh: Mesh | None = None, step: int | None = None
) -> CausalLM:
    """The model of such a run's checkpoint (None: the newest step) with its adapters, on its base as it was quantised.

    config: the run's model with the dtypes that are wanted. run: its resolved config.
    Errors: ValueError where the run has no whole checkpoint, or its base is not where it was or is another one.
    """
    from orbax.checkpoint import v1 as ocp  # seconds to import, and only runs need it

    tuning, mesh = run_tuning(run), mesh or make_mesh(MeshConfig(), jax.devices()[:1])
    graph, state = nnx.split(abstract_tuned(config, tuning))
    shapes, placements = nnx.to_pure_dict(state), nnx.to_pure_dict(param_shardings(state, mesh))
    ours = trained(state, tuning)
    where = (folder / "checkpoints").resolve()
    with ocp.training.Checkpointer(where) as checkpointer:
        if checkpointer.latest is None:
            raise ValueError(f"{folder} has no whole checkpoint yet: train it further, or give another run")
        chosen = checkpointer.latest.step if step is None else step
        found = {item.name for item in (where / str(chosen)).iterdir()}
        items = {"ema" if "ema" in found else "lora": ours} | (
            {"params": set(dotted_paths(shapes)) - ours} if "params" in found else {}
        )
        abstract = {name: _nested(shapes, placements, paths) for name, paths in items.items()}
        try:
            loaded = checkpointer.load_checkpointables(chosen, {**abstract, "meta": None})
        except Exception as error:  # Orbax raises many kinds; a user wants the sentence
            reason = str(error).strip().split("\n")[0][:200]
            raise ValueError(f"checkpoint {where / str(chosen)} could not be read: {reason}") from None
    if "params" in loaded:
        params = loaded.pop("params")
    else:
        params, fingerprint = load_tuned(run["init_from"], config, mesh, tuning, seed=run["train"]["seed"])
        if fingerprint != loaded["meta"]["identity"].get("base"):
            raise ValueError(f"{run['init_from']} is not the base that {folder} was trained on: its weights differ")
    for name in abstract.keys() - {"params"}:
        params = _overlaid(params, loaded[name])
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def _nested(shapes: Any, placements: Any, paths: Any) -> dict[str, Any]:
    """Shapes with shardings of some of the parameters, as nested as they are."""
    nested: dict[str, Any] = {}
    for path, keys in dotted_paths(shapes).items():
        if path not in paths:
            continue
        inner, leaf, placed = nested, shapes, placements
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        for key in keys:
            leaf, placed = leaf[key], placed[key]
        inner[keys[-1]] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)
    return nested


def _overlaid(params: Any, over: Any) -> Any:
    """`params` with the leaves of `over` in their places."""
    if not isinstance(over, dict):
        return over
    return {**params, **{name: _overlaid(params.get(name, {}), part) for name, part in over.items()}}
