"""Everything that a training step reads and changes, as one pytree, and how it is made: sharded from the start."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from models.config import ModelConfig
from models.sharding import logical_axes, param_shardings
from models.transformer import CausalLM
from train.optimizer import Axes

Params = dict[str, Any]  # nested names down to arrays
Leaf = Any  # an array or a tree of them; of shapes or shardings where the whole state is abstract


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """step: batches consumed, skipped ones included: the data position. skipped: how many of them were skipped.

    params: arrays by nested name. ema: their moving average, or None. norm_mean: float32, running mean of the gradient
    norm of the steps that were taken, against which a spike is measured.
    """

    step: Leaf
    params: Leaf
    opt_state: Any
    ema: Leaf
    skipped: Leaf
    norm_mean: Leaf


def describe_model(config: ModelConfig, mesh: Mesh | AbstractMesh) -> tuple[nnx.GraphDef, Axes, Params]:
    """(structure, axis names of every parameter, sharding of every parameter) of a model of which no array exists."""
    model = nnx.eval_shape(lambda: CausalLM(config, rngs=nnx.Rngs(0)))
    graphdef, variables = nnx.split(model)
    axes = jax.tree.map(
        lambda variable: variable.replace(logical_axes(variable)),
        variables,
        is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
    )
    return graphdef, nnx.to_pure_dict(axes), nnx.to_pure_dict(param_shardings(variables, mesh))


def make_params(config: ModelConfig, seed: int) -> Params:
    """Random parameters; to be traced, so that jit's out_shardings put every part where it belongs."""
    return nnx.to_pure_dict(nnx.state(CausalLM(config, rngs=nnx.Rngs(seed))))


def new_state(params: Params, tx: optax.GradientTransformation, *, with_ema: bool) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        ema=jax.tree.map(jnp.copy, params) if with_ema else None,
        skipped=jnp.zeros((), jnp.int32),
        norm_mean=jnp.zeros((), jnp.float32),
    )


def abstract_state(create: Callable[[], TrainState], placements: Params, mesh: Mesh | AbstractMesh) -> TrainState:
    """Shape, dtype and sharding of every leaf of `create()`, without making any.

    placements: the sharding of every parameter; optimizer moments and EMA lie as their parameter does, scalars
    everywhere.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    state = jax.eval_shape(create)
    by_path = {_names(path): sharding for path, sharding in jax.tree_util.tree_leaves_with_path(placements)}
    shapes = {_names(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)}

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        names = _names(path)
        owner = next((names[i:] for i in range(len(names)) if names[i:] in by_path), None)
        sharding = by_path[owner] if owner is not None and shapes[owner] == leaf.shape else everywhere
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, state)


def shardings_of(abstract: TrainState) -> TrainState:
    """The sharding of every leaf of an abstract state."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def create_state(create: Callable[..., TrainState], abstract: TrainState, *arguments: Params) -> TrainState:
    """The state itself: made on the devices that keep it, never whole on one host.

    arguments: what `create` is called with, such as parameters to start from.
    """
    return jax.jit(create, out_shardings=shardings_of(abstract))(*arguments)


def merge(graphdef: nnx.GraphDef, params: Params) -> Any:
    """The model with these parameters; works inside jit."""
    return nnx.merge(graphdef, nnx.State(params))


def _names(path: tuple) -> tuple[str, ...]:
    """The names along a pytree path, whatever kind of container each belongs to."""
    return tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
