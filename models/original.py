"""A tuned model on the weights that it started from: what makes an adapter fit the base that others have.

Beginnings such as PiSSA put a part of a matrix into its adapter and train over the rest, so that a matrix W becomes
W - s a0 b0 and what is learned W - s a0 b0 + s a b. On W itself that is an update of twice the rank, [a a0] [b; -b0]
(Meng et al. 2024, appendix; PEFT's path_initial_model_for_weight_conversion does the same).

Shapes: I and O the sides of a matrix, R rank.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from models.adapter import Adapter
from models.adapters import adapters_of
from models.lora import adaptable
from models.quantize import QuantizedLinear, dequantized
from models.transformer import CausalLM

CLOSE = 1e-4  # of a matrix's largest value: how near its parts must come to it, besides what the base's dtype rounds


def on_original(model: CausalLM, original: CausalLM, start: CausalLM | None = None) -> CausalLM:
    """The model with its adapters on the float weights of `original`; parameters that were trained whole stay.

    original: the checkpoint that the tuning began from. start: the tuned model before its first step, where adapters
    began by changing their matrices (models.lora.CHANGES_BASE): they come back with twice their rank.
    On a float base this is the same function. On a quantised one, what quantisation lost is there again.
    Errors: ValueError where `original` and `start` do not make the base that the model has.
    """
    quantised = {".".join(map(str, path)) for path, m in nnx.iter_modules(model) if isinstance(m, QuantizedLinear)}
    moved = dequantized(model)
    places, sources = adaptable(moved), adaptable(original)
    wider = {} if start is None else widened(adapters_of(model), adapters_of(start))
    if start is not None:
        for path, first in adapters_of(start).items():
            if path not in quantised:
                _check_parts(
                    path,
                    _float_source(path, sources.get(path), places[path].full_kernel().shape),
                    places[path].full_kernel(),
                    first,
                )
    for path in sorted(quantised | wider.keys()):
        source = _float_source(path, sources.get(path), places[path].full_kernel().shape)
        places[path].kernel = places[path].kernel.replace(source)
    for path, adapter in wider.items():
        places[path].lora = nnx.data(adapter)
    return moved


def _float_source(path: str, source: Any, shape: tuple[int, ...]) -> Array:
    """The float matrix of the original at a path; ValueError where it has none, or one of another shape."""
    if isinstance(source, QuantizedLinear):
        raise ValueError(
            f"the original base rests in {type(source.config).__name__} itself ({path}): no weights from before are "
            "known; merge into what it is, or name a float one"
        )
    if source is None or source.full_kernel().shape != shape:
        found = "none" if source is None else source.full_kernel().shape
        raise ValueError(f"the original base is another model: {path} is {found} there and {shape} here")
    return source.kernel.get_value()


def widened(adapters: Mapping[str, Adapter], first: Mapping[str, Adapter]) -> dict[str, Adapter]:
    """The adapters less what they began as: the same updates, counted from matrices that hold all of themselves."""
    found = {}
    for path, adapter in adapters.items():
        a, b = (jnp.asarray(half.get_value(), jnp.float32) for half in (adapter.a, adapter.b))
        a0, b0 = (jnp.asarray(half.get_value(), jnp.float32) for half in (first[path].a, first[path].b))
        found[path] = Adapter(
            jnp.concatenate([a, a0], axis=-1),
            jnp.concatenate([b, -b0], axis=-2),
            None if adapter.magnitude is None else adapter.magnitude.get_value(),
            axes=adapter.axes,
            scales=adapter.scales,
            dtype=adapter.dtype,
            path=adapter.path,
        )
    return found


def _check_parts(path: str, whole: Array, base: Array, first: Adapter) -> None:
    """ValueError where a base and the first update do not make up the original matrix."""
    a, b = (half.get_value()[..., 0, :, :] for half in (first.a, first.b))
    update = first.scales[0] * jnp.matmul(a, b, precision="highest", preferred_element_type=jnp.float32)
    largest = jnp.max(jnp.abs(whole))
    off = float(jnp.max(jnp.abs(base + update - whole)) / largest)
    rounded = float(jnp.finfo(base.dtype).eps * jnp.max(jnp.abs(base)) / largest)
    if not off <= CLOSE + rounded:
        raise ValueError(f"{path} is not the original less what its adapter began as ({off:.1g} off): another base?")
