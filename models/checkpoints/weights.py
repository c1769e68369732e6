"""Tensors of a checkpoint onto the devices: each device reads its own slice of the map, one parameter at a time."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding

from models.checkpoints.names import BUFFERS, Rule, select
from models.checkpoints.tensors import TensorSource
from models.config import ModelConfig
from models.sharding import param_shardings
from models.transformer import CausalLM, abstract_model

BF16 = np.dtype(ml_dtypes.bfloat16)
ALIGNMENT = 64  # bytes; XLA's least alignment of a buffer on a CPU


def parameter_paths(state: Any) -> dict[str, tuple]:
    """`layers.attention.q.kernel` to the flat path of that leaf in an nnx state."""
    return {".".join(str(part) for part in path): path for path, _ in nnx.to_flat_state(state)}


def load_weights(
    source: TensorSource,
    table: Mapping[str, Rule],
    config: ModelConfig,
    *,
    origin: str,
    mesh: Mesh | None = None,
    param_dtype: str | None = None,
) -> CausalLM:
    """A model with the weights of `source`, placed by the sharding rules on `mesh` (None: the default device).

    param_dtype: "float32" or "bfloat16"; None keeps what the checkpoint stores (quantised and float16: float32).
    origin: what messages call the checkpoint.
    Errors: ValueError that names missing, unexpected and misshapen tensors.
    """
    graph, state = nnx.split(abstract_model(config))
    paths = parameter_paths(state)
    read = read_weights(source, table, config, origin=origin, mesh=mesh, param_dtype=param_dtype)
    return nnx.merge(graph, nnx.from_flat_state({paths[path]: variable for path, variable in read}))


def read_weights(
    source: TensorSource,
    table: Mapping[str, Rule],
    config: ModelConfig,
    *,
    origin: str,
    mesh: Mesh | None = None,
    param_dtype: str | None = None,
) -> Iterator[tuple[str, nnx.Variable]]:
    """(dotted path, variable) of every parameter, read one after the other; arguments and errors as `load_weights`."""
    _, state = nnx.split(abstract_model(config))
    leaves = dict(nnx.to_flat_state(state))
    paths = parameter_paths(state)
    rules = select(table, paths)
    names = resolve_names(source, rules, config, origin)
    check_shapes(source, {path: leaves[paths[path]].get_value().shape for path in rules}, rules, names, origin)
    check_tied(source, config, table, origin)
    shardings = None if mesh is None else dict(nnx.to_flat_state(param_shardings(state, mesh)))
    for path, rule in rules.items():
        leaf = leaves[paths[path]]
        shape = leaf.get_value().shape
        dtype = np.dtype(param_dtype) if param_dtype else _common_dtype(source, names[path])
        sharding = SingleDeviceSharding(jax.devices()[0]) if shardings is None else shardings[paths[path]].get_value()
        values = read_parameter(source, rule, names[path], config, shape, dtype, sharding)
        yield path, leaf.replace(values)


def spelling(source: TensorSource) -> Callable[[str], str]:
    """A tensor's name as these files have it: the original GPT-2 and bare decoders leave the outermost module out."""
    if any(name.startswith(("model.", "transformer.")) for name in source.shapes()):
        return lambda name: name
    return lambda name: name.removeprefix("transformer.").removeprefix("model.")


def resolve_names(
    source: TensorSource, rules: Mapping[str, Rule], config: ModelConfig, origin: str
) -> dict[str, list[str]]:
    """Tensor names of every parameter, one a layer where it is stacked; ValueError on missing or unexpected ones."""
    found = source.shapes()
    spell = spelling(source)
    names = {}
    for path, rule in rules.items():
        every = [rule.name.replace("{i}", str(i)) for i in range(config.num_layers)] if rule.stacked else [rule.name]
        names[path] = [spell(name) for name in every]
    wanted = {name for group in names.values() for name in group}
    missing = sorted(wanted - found.keys())
    if missing:
        raise ValueError(
            f"{origin} lacks {_some(missing)}: it is not whole, or not of the family that its config names"
        )
    unexpected = sorted(name for name in found.keys() - wanted if not BUFFERS.search(name))
    if config.embedding.tied:  # a stored copy of the tied table is checked, not refused (check_tied)
        unexpected = [name for name in unexpected if name not in ("lm_head.weight", "output.weight")]
    if unexpected:
        raise ValueError(f"{origin} holds tensors that its config has no place for: {_some(unexpected)}")
    return names


def _some(names: list[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def check_shapes(
    source: TensorSource,
    ours: Mapping[str, tuple[int, ...]],
    rules: Mapping[str, Rule],
    names: Mapping[str, list[str]],
    origin: str,
) -> None:
    """ValueError naming the tensors whose shape is not what the config asks for."""
    found = source.shapes()
    wrong = []
    for path, rule in rules.items():
        expected = rule.shape(ours[path][1:] if rule.stacked else ours[path])
        wrong += [f"{name} is {found[name]}, expected {expected}" for name in names[path] if found[name] != expected]
    if wrong:
        raise ValueError(f"{origin} does not fit its config: {'; '.join(wrong[:3])}" + ("; ..." if wrong[3:] else ""))


def check_tied(source: TensorSource, config: ModelConfig, table: Mapping[str, Rule], origin: str) -> None:
    """ValueError where a model that says it is tied carries an output projection of its own."""
    head, embedding = table["lm_head.kernel"].name, spelling(source)(table["embedding"].name)
    if not config.embedding.tied or head not in source.shapes() or embedding not in source.shapes():
        return
    one, other = source.view(head), source.view(embedding)
    if one.shape != other.shape or not np.array_equal(one, other):
        raise ValueError(
            f"{origin} says that it is tied (tie_word_embeddings) but carries a different {head}: "
            "set tie_word_embeddings to false in its config.json, or remove the tensor"
        )


def _common_dtype(source: TensorSource, names: list[str]) -> np.dtype:
    """What a parameter keeps: bfloat16 where all its tensors are that, float32 for anything else."""
    return BF16 if {source.dtype(name) for name in names} == {BF16} else np.dtype(np.float32)


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that begins at a multiple of 64 bytes, which a CPU device takes over without a copy."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.__array_interface__["data"][0] % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def read_parameter(
    source: TensorSource,
    rule: Rule,
    names: list[str],
    config: ModelConfig,
    shape: tuple[int, ...],
    dtype: np.dtype,
    sharding: Any,
) -> jax.Array:
    """One parameter. Each distinct slice is read once, layer by layer, straight into the buffer that is handed over.

    Beside the parameters that are loaded already, the host holds one tensor of the file and one slice: what was read
    of the file is let go, and a device that is this host's memory takes the buffer as it is.
    """
    made: dict[str, np.ndarray] = {}

    def read(index: Any) -> np.ndarray:
        if (key := str(index)) not in made:
            made[key] = assemble(index)
        return made[key]

    def assemble(index: tuple[slice, ...]) -> np.ndarray:
        out = aligned_empty(tuple(len(range(size)[cut]) for size, cut in zip(shape, index)), dtype)
        layers = range(len(names))[index[0]] if rule.stacked else (0,)
        for place, layer in enumerate(layers):
            values = rule.ours(source.view(names[layer]), config)
            out[place if rule.stacked else ...] = values[index[1:] if rule.stacked else index]
            del values
            source.release(names[layer])
        return out

    return jax.make_array_from_callback(shape, sharding, read, dtype=jnp.dtype(dtype))
