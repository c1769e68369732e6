"""Everything that a training step reads and changes, as one pytree, and how it is made: sharded from the start."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from models.config import ModelConfig
from models.sharding import logical_axes, param_shardings
from models.transformer import CausalLM
from train.optimizer import Axes

Params = dict[str, Any]  # nested names down to arrays


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """step: batches consumed, skipped ones included: the data position. skipped: how many of them were skipped.

    params: float32 arrays by nested name. ema: their moving average, or None. norm_mean: running mean of the gradient
    norm of the steps that were taken, against which a spike is measured.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: Any
    ema: Params | None
    skipped: Int[Array, ""]
    norm_mean: Float[Array, ""]


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


def state_shardings(abstract: TrainState, placements: Params, mesh: Mesh | AbstractMesh) -> TrainState:
    """A NamedSharding for every leaf: optimizer moments and EMA lie as their parameter does, scalars everywhere.

    abstract: shapes, as jax.eval_shape gives them; placements: the shardings of `abstract.params`.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    by_path = {_names(path): sharding for path, sharding in jax.tree_util.tree_leaves_with_path(placements)}
    shapes = {_names(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(abstract.params)}

    def of_leaf(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        names = _names(path)
        owner = next((names[i:] for i in range(len(names)) if names[i:] in by_path), None)
        return by_path[owner] if owner is not None and shapes[owner] == leaf.shape else everywhere

    return jax.tree_util.tree_map_with_path(of_leaf, abstract)


def init_state(
    build: Callable[[], Params],
    tx: optax.GradientTransformation,
    *,
    placements: Params,
    mesh: Mesh,
    with_ema: bool,
) -> tuple[TrainState, TrainState]:
    """(state, its shardings): parameters are made on the devices that keep them, never whole on one host.

    build: a traceable function of nothing that gives the parameters, such as `lambda: make_params(config, seed)`.
    """

    def create() -> TrainState:
        return new_state(build(), tx, with_ema=with_ema)

    shardings = state_shardings(jax.eval_shape(create), placements, mesh)
    return jax.jit(create, out_shardings=shardings)(), shardings


def merge(graphdef: nnx.GraphDef, params: Params) -> Any:
    """The model with these parameters; works inside jit."""
    return nnx.merge(graphdef, nnx.State(params))


def _names(path: tuple) -> tuple[str, ...]:
    """The names along a pytree path, whatever kind of container each belongs to."""
    return tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
