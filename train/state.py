"""Everything that a training step reads and changes, as one pytree, and how it is made: sharded from the start."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from models.encoder import AnyModelConfig
from models.sharding import logical_axes, mesh_size, param_shardings
from models.tuning import Tuning, abstract_tuned, new_model, trained, tuned
from train.optimizer import Axes

PLAIN = Tuning()
Params = dict[str, Any]  # nested names down to arrays
Leaf = Any  # an array or a tree of them; of shapes or shardings where the whole state is abstract


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """step: batches consumed, skipped ones included: the data position. skipped: how many of them were skipped.

    params: what is trained, arrays by nested name: gradients, optimizer and moving average are of these alone.
    frozen: the model's other parameters, which no step changes. ema: moving average of params, or None. norm_mean:
    float32, running mean of the gradient norm of the steps that were taken, against which a spike is measured.
    """

    step: Leaf
    params: Leaf
    opt_state: Any
    ema: Leaf
    skipped: Leaf
    norm_mean: Leaf
    frozen: Leaf = field(default_factory=dict)


def describe_model(
    config: AnyModelConfig, mesh: Mesh | AbstractMesh, tuning: Tuning = PLAIN
) -> tuple[nnx.GraphDef, Axes, Params]:
    """(structure, axis names of every trained parameter, sharding of every parameter) of a model with no array yet."""
    graphdef, variables = nnx.split(abstract_tuned(config, tuning))
    axes = jax.tree.map(
        lambda variable: variable.replace(logical_axes(variable)),
        variables,
        is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
    )
    kept = trained(variables, tuning)
    axes = split_names(nnx.to_pure_dict(axes), lambda path: ".".join(path) in kept)[0]
    return graphdef, axes, nnx.to_pure_dict(param_shardings(variables, mesh))


def make_params(config: AnyModelConfig, seed: int, tuning: Tuning = PLAIN) -> Params:
    """Random parameters; to be traced, so that jit's out_shardings put every part where it belongs."""
    return nnx.to_pure_dict(nnx.state(tuned(new_model(config, seed), tuning, seed)))


def new_state(
    params: Params, tx: optax.GradientTransformation, *, with_ema: bool, axes: Axes | None = None
) -> TrainState:
    """The state before the first step.

    params: all of the model. axes: those that are trained (`describe_model`); None: all.
    """
    params, frozen = (params, {}) if axes is None else split_params(params, axes)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        ema=jax.tree.map(jnp.copy, params) if with_ema else None,
        skipped=jnp.zeros((), jnp.int32),
        norm_mean=jnp.zeros((), jnp.float32),
        frozen=frozen,
    )


def abstract_state(create: Callable[[], TrainState], placements: Params, mesh: Mesh | AbstractMesh) -> TrainState:
    """Shape, dtype and sharding of every leaf of `create()`, without making any.

    placements: the sharding of every parameter; optimizer moments and EMA lie as their parameter does, scalars
    everywhere.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    state = jax.eval_shape(create)
    by_path = {_names(path): sharding for path, sharding in jax.tree_util.tree_leaves_with_path(placements)}
    whole = whole_params(state.params, state.frozen)
    shapes = {_names(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(whole)}

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        names = _names(path)
        owner = next((names[i:] for i in range(len(names)) if names[i:] in by_path), None)
        sharding = everywhere
        if owner is not None and shapes[owner] == leaf.shape:
            sharding = by_path[owner]
        elif owner is not None and len(shapes[owner]) == len(leaf.shape):  # scales of blocks of that parameter
            spec = [e if s % mesh_size(mesh, e) == 0 else None for e, s in zip(by_path[owner].spec, leaf.shape)]
            sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, state)


def shardings_of(abstract: TrainState) -> TrainState:
    """The sharding of every leaf of an abstract state."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def create_state(create: Callable[..., TrainState], abstract: TrainState, *arguments: Params) -> TrainState:
    """The state itself: made on the devices that keep it, never whole on one host.

    arguments: what `create` is called with, such as parameters to start from; they are donated.
    """
    donated = tuple(range(len(arguments)))
    return jax.jit(create, out_shardings=shardings_of(abstract), donate_argnums=donated)(*arguments)


def merge(graphdef: nnx.GraphDef, params: Params, frozen: Params | None = None) -> Any:
    """The model with these parameters; works inside jit."""
    return nnx.merge(graphdef, nnx.State(whole_params(params, frozen or {})))


def whole_params(params: Params, frozen: Params) -> Params:
    """All parameters of the model as one tree; arrays are shared."""
    if not frozen:
        return params
    whole = dict(frozen)
    for name, value in params.items():
        whole[name] = whole_params(value, frozen[name]) if name in frozen else value
    return whole


def split_params(params: Params, axes: Axes) -> tuple[Params, Params]:
    """(the parameters that `axes` names, the others)."""
    leaves = jax.tree_util.tree_leaves_with_path(axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    named = {_names(path) for path, _ in leaves}
    return split_names(params, lambda path: path in named)


def split_names(
    tree: Params, chosen: Callable[[tuple[str, ...]], bool], at: tuple[str, ...] = ()
) -> tuple[Params, Params]:
    """(leaves whose path is chosen, the others), each as nested as the tree, without empty parts."""
    ours: Params = {}
    others: Params = {}
    for name, value in tree.items():
        here = (*at, str(name))
        if isinstance(value, dict):
            for side, part in zip((ours, others), split_names(value, chosen, here)):
                if part:
                    side[name] = part
        else:
            (ours if chosen(here) else others)[name] = value
    return ours, others


def _names(path: tuple) -> tuple[str, ...]:
    """The names along a pytree path, whatever kind of container each belongs to."""
    return tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
