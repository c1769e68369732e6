"""The parts of a transformer: linear projections, norms, rotary positions, MLPs.

Shapes: B batch, T sequence, D embed, F mlp, N heads, H head dim, I and O the sides of a projection.

Initialisation: projections are truncated normal with standard deviation fan_in ** -0.5 (LeCun et al. 1998, as in most
JAX language models); those that write into the residual stream are divided by sqrt(2 * num_layers) besides (Radford et
al. 2019, GPT-2, section 2.3); embeddings have standard deviation 0.02 (GPT-2's); norms begin as
the identity; biases at 0.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from models.config import (
    Activation,
    Gated,
    LayerNorm,
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    Plain,
    RMSNorm,
    Rotary,
)
from models.products import weight_product
from models.rows import RowContext

EMBEDDING_STDDEV = 0.02  # GPT-2 (Radford et al. 2019), code release
ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


def truncated_normal(key: jax.Array, shape: tuple[int, ...], stddev: float, dtype: str) -> jax.Array:
    """Normal draws cut at two standard deviations and rescaled, so that `stddev` is what comes out."""
    cut_stddev = 0.87962566103423978  # standard deviation of a unit normal cut at +-2
    return (jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32) * (stddev / cut_stddev)).astype(dtype)


class Linear(nnx.Module):
    """y = x @ kernel + bias, with `kernel` [I, O]. Every projection of a model is one of these, so that surgery by path
    can put another module with the same call in its place (`models/quantize.py`) or adapters on it (`models/lora.py`).

    Args:
      axes: logical axis names of the kernel's two dims (`models/sharding.py`).
      stddev: of the initial kernel; None: I ** -0.5.
      dtype: of the product; inputs and kernel are cast to it.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        axes: tuple[str, str],
        rngs: nnx.Rngs,
        bias: bool = False,
        stddev: float | None = None,
        dtype: str = "bfloat16",
        param_dtype: str = "float32",
    ):
        stddev = in_dim**-0.5 if stddev is None else stddev
        self.kernel = nnx.Param(truncated_normal(rngs.params(), (in_dim, out_dim), stddev, param_dtype), axes=axes)
        self.bias = nnx.Param(jnp.zeros((out_dim,), param_dtype), axes=(axes[1],)) if bias else None
        self.lora: Any = None  # models.adapter.Adapter
        self.axes, self.dtype = axes, dtype

    def __call__(self, x: Float[Array, "*batch I"], rows: RowContext | None = None) -> Float[Array, "*batch O"]:
        y = weight_product(x.astype(self.dtype), self.kernel.get_value().astype(self.dtype), self.axes)
        return finished(self, x, y, rows)

    def full_kernel(self) -> Float[Array, "*layers I O"]:
        """The matrix that the product is made with."""
        return self.kernel.get_value()


def finished(linear: Any, x: Array, y: Array, rows: RowContext | None) -> Array:
    """The product of a projection with its adapter's update and its bias."""
    if linear.lora is not None:
        y = linear.lora(x, y, linear.full_kernel, rows)
    return y if linear.bias is None else y + linear.bias.get_value().astype(linear.dtype)


class Norm(nnx.Module):
    """RMSNorm or LayerNorm over the last dim, as its config says; float32 inside, the input's dtype outside."""

    def __init__(self, dim: int, config: RMSNorm | LayerNorm, *, param_dtype: str = "float32"):
        self.config = config
        if isinstance(config, LayerNorm):
            scaled, offset, shifted = True, False, config.bias
        else:
            scaled, offset, shifted = config.scale, config.offset, False
        start = jnp.zeros if offset else jnp.ones
        self.offset = offset
        self.scale = nnx.Param(start((dim,), param_dtype), axes=("norm",)) if scaled else None
        self.bias = nnx.Param(jnp.zeros((dim,), param_dtype), axes=("norm",)) if shifted else None

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        y = normalised(self.config, x)
        if self.scale is not None:
            scale = self.scale.get_value().astype(jnp.float32)
            y = y * (1.0 + scale if self.offset else scale)
        if self.bias is not None:
            y = y + self.bias.get_value().astype(jnp.float32)
        return y.astype(x.dtype)


@partial(jax.checkpoint, prevent_cse=False, static_argnums=(0,))
def normalised(config: RMSNorm | LayerNorm, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
    """x over its root mean square (LayerNorm: its deviations over theirs), float32; the backward pass keeps x alone."""
    y = x.astype(jnp.float32)
    if isinstance(config, LayerNorm):
        y = y - jnp.mean(y, axis=-1, keepdims=True)
    return y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + config.eps)


class GatedMLP(nnx.Module):
    """down(activation(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig, part: Gated, *, rngs: nnx.Rngs):
        common = linear_settings(config, rngs) | {"bias": part.bias}
        self.gate = Linear(config.embed_dim, config.mlp_dim, axes=("embed", "mlp"), **common)
        self.up = Linear(config.embed_dim, config.mlp_dim, axes=("embed", "mlp"), **common)
        self.down = Linear(
            config.mlp_dim,
            config.embed_dim,
            axes=("mlp", "embed"),
            stddev=residual_stddev(config, config.mlp_dim),
            **common,
        )
        self.activation = part.activation

    def __call__(self, x_BTD: Float[Array, "B T D"], rows: RowContext | None = None) -> Float[Array, "B T D"]:
        return self.down(gated(self.activation, self.gate(x_BTD, rows), self.up(x_BTD, rows)), rows)


class PlainMLP(nnx.Module):
    """down(activation(up(x)))."""

    def __init__(self, config: ModelConfig, part: Plain, *, rngs: nnx.Rngs):
        common = linear_settings(config, rngs) | {"bias": part.bias}
        self.up = Linear(config.embed_dim, config.mlp_dim, axes=("embed", "mlp"), **common)
        self.down = Linear(
            config.mlp_dim,
            config.embed_dim,
            axes=("mlp", "embed"),
            stddev=residual_stddev(config, config.mlp_dim),
            **common,
        )
        self.activation = part.activation

    def __call__(self, x_BTD: Float[Array, "B T D"], rows: RowContext | None = None) -> Float[Array, "B T D"]:
        return self.down(activate(self.activation, self.up(x_BTD, rows)), rows)


def linear_settings(config: ModelConfig, rngs: nnx.Rngs) -> dict[str, Any]:
    """What every projection of a model shares."""
    return {"rngs": rngs, "dtype": config.dtype, "param_dtype": config.param_dtype}


def make_mlp(config: ModelConfig, rngs: nnx.Rngs) -> GatedMLP | PlainMLP:
    """The MLP that the config names."""
    if isinstance(config.mlp, Gated):
        return GatedMLP(config, config.mlp, rngs=rngs)
    return PlainMLP(config, config.mlp, rngs=rngs)


def activate(name: Activation, x: jax.Array) -> jax.Array:
    """The activation function of that name."""
    return ACTIVATIONS[name](x)


@partial(jax.checkpoint, prevent_cse=False, static_argnums=(0,))
def gated(name: Activation, gate: jax.Array, up: jax.Array) -> jax.Array:
    """activation(gate) * up; the backward pass keeps these two and makes what lies between again."""
    return activate(name, gate) * up


def residual_stddev(config: ModelConfig, fan_in: int) -> float:
    """Initial standard deviation of a projection that writes into the residual stream."""
    return fan_in**-0.5 / math.sqrt(2 * config.num_layers)


def rotary_frequencies(rotary: Rotary, head_dim: int) -> Float[Array, "R"]:
    """Angular frequency of each rotated pair, radians a token, float32; R = fraction * head_dim / 2."""
    rotated = int(head_dim * rotary.fraction) // 2 * 2
    exponents = jnp.arange(0, rotated, 2, dtype=jnp.float32) / rotated
    frequencies = 1.0 / (rotary.theta**exponents)
    scaling = rotary.scaling
    if isinstance(scaling, LinearScaling):
        return frequencies / scaling.factor
    if isinstance(scaling, Llama3Scaling):
        return llama3_frequencies(frequencies, scaling)
    return frequencies


def llama3_frequencies(frequencies: Float[Array, "R"], scaling: Llama3Scaling) -> Float[Array, "R"]:
    """Llama 3.1's stretch (Llama Team 2024; constants in its released code): wavelengths longer than the old context by
    1 / low_freq_factor are divided, shorter ones than 1 / high_freq_factor of it are kept, linear between."""
    turns = scaling.original_positions * frequencies / (2 * math.pi)  # turns over the old context
    ramp = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = jnp.clip(ramp, 0.0, 1.0)
    return frequencies * (keep + (1.0 - keep) / scaling.factor)


def rotary_table(
    rotary: Rotary, head_dim: int, positions_BT: Int[Array, "B T"]
) -> tuple[Float[Array, "B T 1 R"], Float[Array, "B T 1 R"]]:
    """Cosine and sine of every position and frequency, float32, made once and shared by all layers of this kind."""
    angles = positions_BT[:, :, None, None].astype(jnp.float32) * rotary_frequencies(rotary, head_dim)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x_BTNH: Float[Array, "B T N H"], table: tuple[Float[Array, "B T 1 R"], Float[Array, "B T 1 R"]]
) -> Float[Array, "B T N H"]:
    """Rotates the pairs (x[i], x[i + R]) of the first 2R dims of each head by their angles; the rest passes."""
    cos, sin = table
    rank = cos.shape[-1]
    x = x_BTNH.astype(jnp.float32)
    first, second, rest = x[..., :rank], x[..., rank : 2 * rank], x[..., 2 * rank :]
    parts = [first * cos - second * sin, second * cos + first * sin, rest]
    return jnp.concatenate(parts if rest.shape[-1] else parts[:2], axis=-1).astype(x_BTNH.dtype)
