"""What makes the model that is tuned out of the plain one: adapters, quantised weights, frozen parameters."""

from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from models.encoder import AnyModelConfig, EncoderConfig, EncoderLM
from models.lora import LoRA, add_lora
from models.quantize import Quantization, quantize_model, round_trip
from models.trainable import trainable_paths
from models.transformer import CausalLM

AnyModel = CausalLM | EncoderLM


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """lora: adapters to train, None for none. quantize: how the projections of the layers rest, None for float.

    freeze: patterns of parameters that are not trained, as of `models.lora.matches`.
    """

    lora: LoRA | None = None
    quantize: Quantization | None = None
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.quantize is not None and self.lora is None:
            raise ValueError("quantize goes with lora: quantised weights cannot be trained themselves; set lora=LoRA()")


def tuned(model: AnyModel, tuning: Tuning, seed: int) -> AnyModel:
    """The model with fresh adapters and quantised weights; can be traced. Adapters first: some start from weights."""
    if isinstance(model, EncoderLM):
        if tuning.lora is not None:
            raise ValueError("an encoder is trained whole, without adapters: set lora=None")
        return model
    if tuning.lora is not None:
        back = None if tuning.quantize is None else round_trip(tuning.quantize)
        model = add_lora(model, tuning.lora, rngs=nnx.Rngs(seed), round_trip=back)
    return model if tuning.quantize is None else quantize_model(model, tuning.quantize)


def new_model(config: AnyModelConfig, seed: int) -> AnyModel:
    """The model that a config describes, with random parameters; can be traced."""
    if isinstance(config, EncoderConfig):
        return EncoderLM(config, rngs=nnx.Rngs(seed))
    return CausalLM(config, rngs=nnx.Rngs(seed))


def abstract_tuned(config: AnyModelConfig, tuning: Tuning) -> AnyModel:
    """Such a model with shapes in the place of arrays."""
    return nnx.eval_shape(lambda: tuned(new_model(config, 0), tuning, 0))


def dotted_paths(variables: Any) -> dict[str, tuple]:
    """`layers.attention.q.lora.a` to the path of that leaf in an nnx state or in nested dicts."""
    pure = variables if isinstance(variables, dict) else nnx.to_pure_dict(variables)
    leaves = jax.tree_util.tree_leaves_with_path(pure)
    return {".".join(str(key.key) for key in path): tuple(key.key for key in path) for path, _ in leaves}


def trained(variables: Any, tuning: Tuning) -> frozenset[str]:
    """Dotted paths of the parameters that are trained."""
    return trainable_paths(dotted_paths(variables), tuning.lora, tuning.freeze)
