"""A checkpoint's weights as the base of a tuned model: every projection gets its adapters and is quantised as it comes.

The float model is never whole in memory: a projection is read, adapted, quantised and let go before the next one.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from models.checkpoints.fingerprint import checksum, combined
from models.checkpoints.load import load_model, matching_config, quantization_of, read_parameters
from models.checkpoints.location import Location, resolve
from models.config import ModelConfig
from models.layers import Linear
from models.lora import LoRA, adapt_linear, adaptable, add_lora, attach, choose, path_key
from models.quantize import NF4, Quantization, quantized_linear, round_trip
from models.sharding import param_shardings
from models.transformer import CausalLM, abstract_model
from models.tuning import Tuning, abstract_tuned, dotted_paths

Params = dict[str, Any]


def load_tuned(
    location: str | Path, config: ModelConfig, mesh: Mesh, tuning: Tuning, *, seed: int
) -> tuple[Params, str]:
    """(all parameters of the tuned model as nested dicts on `mesh`, the fingerprint of the checkpoint's weights).

    The same values as `models.tuning.tuned` gives on the loaded model. Weights are `config.param_dtype`.
    Errors: ValueError where the checkpoint is another model than `config`, or as of `add_lora` and `quantize`.
    """
    where = resolve(location)
    found = matching_config(where, config)
    if (stored := quantization_of(where)) is not None:
        return _load_quantised(where, found, mesh, tuning, stored, seed)
    placements = nnx.to_pure_dict(param_shardings(nnx.state(abstract_tuned(config, tuning)), mesh))
    model = abstract_model(config)
    places = adaptable(model)
    chosen = set(choose(tuning.lora, places)) if tuning.lora is not None else set()
    key = nnx.Rngs(seed).params()
    params: Params = {}
    sums: dict[str, Array] = {}
    for path, variable in read_parameters(where, found, mesh, config.param_dtype):
        values = variable.get_value()
        sums[path] = checksum(values)
        *names, leaf = path.split(".")
        inner, place = params, placements
        for name in names:
            inner, place = inner.setdefault(name, {}), place[name]
        owner = ".".join(names)
        if leaf == "kernel" and owner in places and owner != "lm_head":
            lora = tuning.lora if owner in chosen else None
            make = partial(_tuned_kernel, places[owner], owner, lora, tuning.quantize)
            shardings = {name: part for name, part in place.items() if name != "bias"}
            donated = () if tuning.quantize else 0  # no part of a quantised one could lie where the kernel lay
            inner |= jax.jit(make, out_shardings=shardings, donate_argnums=donated)(values, path_key(key, owner))
        else:
            inner[leaf] = values
        del variable, values
    for name in sorted(chosen & {"embedding", "lm_head"}):
        adapt = partial(_table_adapter, model, name, tuning)
        tables = {part: params[part] for part in ("embedding", "lm_head") if part in params}
        make_adapter = jax.jit(adapt, out_shardings=placements[f"{name}_lora"])
        params[f"{name}_lora"] = make_adapter(tables, path_key(key, name))
    return params, combined({path: int(value) for path, value in sums.items()})


def _load_quantised(
    where: Location, config: ModelConfig, mesh: Mesh, tuning: Tuning, stored: NF4, seed: int
) -> tuple[Params, str]:
    """The same for a checkpoint that is quantised already, which stays as it is."""
    if tuning.quantize != stored:
        raise ValueError(f"init_from {where.path} is stored as {stored}: set quantize to that, or take float weights")
    model = load_model(where, config, mesh, config.param_dtype)
    pure = nnx.to_pure_dict(nnx.state(model))
    sums = {path: checksum(leaf) for path, leaf in zip(dotted_paths(pure), jax.tree.leaves(pure))}
    lora = tuning.lora
    assert lora is not None
    graph, state = nnx.split(model)
    shapes = nnx.state(nnx.eval_shape(lambda: add_lora(model, lora, rngs=nnx.Rngs(seed))))
    placements = nnx.to_pure_dict(param_shardings(shapes, mesh))
    make = jax.jit(
        lambda state: nnx.to_pure_dict(nnx.state(add_lora(nnx.merge(graph, state), lora, rngs=nnx.Rngs(seed)))),
        out_shardings=placements,
        donate_argnums=0,
    )
    return make(state), combined({path: int(value) for path, value in sums.items()})


def _tuned_kernel(
    linear: Linear, path: str, lora: LoRA | None, form: Quantization | None, kernel: Array, key: Array
) -> Params:
    """The parts that one projection's kernel becomes, without its bias."""
    linear = nnx.clone(linear)
    linear.kernel = linear.kernel.replace(kernel)  # type: ignore[assignment]  # replace() gives its own kind
    linear.bias = None
    if lora is not None:
        adapt_linear(linear, path, lora, key, None if form is None else round_trip(form))
    part: Any = linear if form is None else quantized_linear(linear, form, path)
    return nnx.to_pure_dict(nnx.state(part))


def _table_adapter(model: CausalLM, name: str, tuning: Tuning, tables: Params, key: Array) -> Params:
    """The adapter of the token table or of the output."""
    assert tuning.lora is not None
    model = nnx.clone(model)
    model.embedding = model.embedding.replace(tables["embedding"])  # type: ignore[assignment]
    if model.lm_head is not None:
        kernel = tables["lm_head"]["kernel"]
        model.lm_head.kernel = model.lm_head.kernel.replace(kernel)  # type: ignore[assignment]
    attach(model, name, model, tuning.lora, key, None)
    return nnx.to_pure_dict(nnx.state(getattr(model, f"{name}_lora")))
