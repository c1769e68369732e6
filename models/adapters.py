"""Several adapters over one base, of which each row of a batch uses one: put together, and chosen by name or number.

    model = together([(chats, "chats"), (style, "style")])     two copies of one base, each with an adapter of its own
    chosen("style", ("chats", "style"))                        1, and -1 for "base": what RowContext takes

Shapes: A adapters, I and O the sides of a projection, R rank.
"""

from collections.abc import Iterable, Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from models.adapter import Adapter
from models.lora import adaptable
from models.transformer import CausalLM

BASE = "base"  # the name that chooses no adapter


def chosen(name: str | None, names: Sequence[str]) -> int:
    """The number of the adapter of that name, -1 for the base alone; None: the first, if there is any.

    Errors: ValueError where no adapter has the name.
    """
    if name is None:
        return 0
    if name == BASE:
        return -1
    if name not in names:
        known = ", ".join([*names, BASE])
        raise ValueError(f"no adapter is called {name!r}: choose of {known}")
    return list(names).index(name)


def count_adapters(model: CausalLM) -> int:
    """How many adapters a model has."""
    modules = nnx.iter_modules(model)
    return max((len(module.scales) for _, module in modules if isinstance(module, Adapter)), default=0)


def check_numbers(numbers: Iterable[int], count: int) -> None:
    """ValueError where a number chooses an adapter that is not there: the base would act, and nothing would say so."""
    # 0 is the default, and goes with a model that has none
    if wrong := [number for number in numbers if not -1 <= number < max(1, count)]:
        raise ValueError(f"adapter {wrong[0]} was chosen, the model has {count}: give 0 to {count - 1}, or -1 for none")


def adapters_of(model: CausalLM) -> dict[str, Adapter]:
    """Every adapter by the path of its matrix; a tied one appears at both its places."""
    found = {
        ".".join(map(str, path)): lora
        for path, module in nnx.iter_modules(model)
        if (lora := getattr(module, "lora", None)) is not None
    }
    if model.embedding_lora is not None:
        found["embedding"] = model.embedding_lora
        if model.tied_lora:
            found["lm_head"] = model.embedding_lora.transposed()
    if model.lm_head_lora is not None:
        found["lm_head"] = model.lm_head_lora
    return found


def together(models: Sequence[tuple[CausalLM, str]]) -> CausalLM:
    """One model with the adapter of each of the given ones, in order; the base is the first one's.

    models: (model with one adapter, its name), all over the same base. Where an adapter has no part on a matrix, or one
    of smaller rank, zeros stand for it. Errors: ValueError where DoRA is mixed with others, or adapts other matrices.
    """
    parts = [(adapters_of(model), name) for model, name in models]
    paths = list(dict.fromkeys(path for found, _ in parts for path in found))
    model = nnx.clone(models[0][0])
    model.tied_lora = False
    places = adaptable(model)
    for path in paths:
        here = [found.get(path) for found, _ in parts]
        known = [adapter for adapter in here if adapter is not None]
        dora = [adapter is not None and adapter.magnitude is not None for adapter in here]
        if any(dora) and not all(dora):
            with_dora, without = parts[dora.index(True)][1], parts[dora.index(False)][1]
            raise ValueError(
                f"adapter {with_dora!r} scales the columns of {path} (DoRA) and {without!r} does not: they cannot "
                "share a base; load them apart, or merge one"
            )
        rank = max(adapter.a.get_value().shape[-1] for adapter in known)
        first = known[0]
        lengths = [adapter.magnitude.get_value() for adapter in known if adapter.magnitude is not None]
        whole = Adapter(
            _stacked([None if one is None else one.a.get_value() for one in here], -1, rank),
            _stacked([None if one is None else one.b.get_value() for one in here], -2, rank),
            jnp.concatenate(lengths, axis=-2) if lengths else None,
            axes=first.axes,
            scales=tuple(1.0 if one is None else one.scales[0] for one in here),
            dtype=first.dtype,
            path=first.path,
        )
        if path in ("embedding", "lm_head"):
            setattr(model, f"{path}_lora", nnx.data(whole))
        else:
            places[path].lora = nnx.data(whole)
    return model


def _stacked(halves: Sequence[Array | None], dim: int, rank: int) -> Array:
    """Halves of one adapter each, [..., 1, I, R] or [..., 1, R, O], as those of all, filled up with zeros to `rank`."""
    there = next(half for half in halves if half is not None)
    filled = []
    for half in halves:
        values = jnp.zeros_like(there) if half is None else half
        missing = [(0, 0)] * values.ndim
        missing[dim] = (0, rank - values.shape[dim])
        filled.append(jnp.pad(values, missing))
    return jnp.concatenate(filled, axis=-3)
