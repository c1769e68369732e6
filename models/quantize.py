"""Weights at rest in 4 or 8 bits: NF4 (Dettmers et al. 2023, arXiv:2305.14314, section 3) and absmax int8.

    model = quantize_model(model, NF4())            # every projection of the layers; tables, norms and biases stay
    model = dequantized(model)                      # the same function of the same numbers, in float

Shapes: I and O the sides of a projection, P = I / 2 packed rows, K = I / block blocks a column, G groups of scales.

NF4 is bitsandbytes' own: blocks of 64 along the input side, sixteen values, scales quantised again in groups of 256.
Only the layout differs: theirs is one flat array, of a matrix [O, I]; here two neighbours of a column share a byte in
`packed` [P, O], so that the output side splits over `tensor`, and the input side over `fsdp`, without moving a block.
Weights are made whole inside the product and again in its backward pass: no float copy is kept.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from models.layers import Linear, finished
from models.rows import RowContext
from models.sharding import constrain
from models.transformer import CausalLM

# The quantiles of a unit normal, cut and scaled to [-1, 1] (QLoRA, appendix E, as bitsandbytes rounds them).
NF4_VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
SCALE_GROUP = 256  # scales that share a second scale (QLoRA, section 3)


@dataclass(frozen=True, kw_only=True)
class NF4:
    """4-bit normal floats: 4 + 8/64 + 32/(64 * 256) = 4.127 bits a weight, without double_quant 4.5.

    block: weights of one scale, along the input side; it must divide that side.
    """

    block: int = 64
    double_quant: bool = True

    def __post_init__(self) -> None:
        if self.block < 2 or self.block % 2:
            raise ValueError(f"quantize.block must be even and at least 2, not {self.block}")


@dataclass(frozen=True, kw_only=True)
class Int8Weights:
    """Whole numbers from -127 to 127 times one scale for each `block` weights of a column; None: the whole column."""

    block: int | None = None

    def __post_init__(self) -> None:
        if self.block is not None and self.block < 1:
            raise ValueError(f"quantize.block must be at least 1, or None, not {self.block}")


Quantization = NF4 | Int8Weights


class Quantized(nnx.Variable):
    """Numbers of a quantised matrix: never trained, never cast."""


class QuantizedLinear(nnx.Module):
    """y = x @ kernel + bias as `Linear` gives it, the kernel kept in 4 or 8 bits and made float inside the product.

    Args:
      parts: what `quantize` gave, any stacked layers in front. in_dim: I. Other arguments as of `Linear`.
    """

    def __init__(
        self,
        parts: dict[str, Array],
        config: Quantization,
        *,
        axes: tuple[str, str],
        in_dim: int,
        bias: nnx.Param | None,
        dtype: str,
    ):
        whole = {"group_scales": (None,), "mean": ()}
        self.parts = nnx.Dict(
            {
                name: Quantized(value, axes=whole.get(name, axes), optional=name not in ("packed", "codes"))
                for name, value in parts.items()
            }
        )
        self.config, self.axes, self.in_dim, self.dtype = config, axes, in_dim, dtype
        self.bias = bias
        self.lora: Any = None  # models.adapter.Adapter

    def __call__(self, x: Float[Array, "*batch I"], rows: RowContext | None = None) -> Float[Array, "*batch O"]:
        parts = {name: gathered_part(name, part.get_value(), self.axes) for name, part in self.parts.items()}
        y = product(x.astype(self.dtype), parts, self.config)
        return finished(self, x, y, rows)

    def full_kernel(self) -> Float[Array, "*layers I O"]:
        """The float matrix that the product is made with, float32."""
        return dequantize({name: part.get_value() for name, part in self.parts.items()}, self.config)


def gathered_part(name: str, part: Array, axes: tuple[str, str]) -> Array:
    """A part whole over `fsdp`: what travels are the packed bytes, a quarter of bfloat16's."""
    if part.ndim < 2 or name == "group_scales":
        return part
    return constrain(part, [None if axis == "embed" else axis for axis in axes])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: Array, parts: dict[str, Array], config: Quantization) -> Array:
    """x @ kernel. Its gradient keeps the packed parts, not the float matrix, and there is none with respect to them."""
    return x @ dequantize(parts, config, x.dtype)


def _product_forward(x: Array, parts: dict[str, Array], config: Quantization) -> tuple[Array, dict[str, Array]]:
    return product(x, parts, config), parts


def _product_backward(config: Quantization, parts: dict[str, Array], gradient: Array) -> tuple[Array, None]:
    return gradient @ dequantize(parts, config, gradient.dtype).T, None


product.defvjp(_product_forward, _product_backward)


def quantize(kernel_IO: Float[Array, "I O"], config: Quantization) -> dict[str, Array]:
    """The parts of one matrix.

    NF4: `packed` [P, O]; `scales` float32 [K, O], or with double_quant `scale_codes` uint8 [K, O], `group_scales`
    float32 [G] and `mean` []. int8: `codes` [I, O] and `scales` [K, O].
    """
    in_dim, out_dim = kernel_IO.shape
    check_blocks(in_dim, config, "this matrix")
    block = config.block or in_dim
    blocks_KbO = kernel_IO.astype(jnp.float32).reshape(in_dim // block, block, out_dim)
    scales_KO = jnp.max(jnp.abs(blocks_KbO), axis=1)
    unit_KbO = blocks_KbO / jnp.where(scales_KO == 0, 1.0, scales_KO)[:, None]
    if isinstance(config, Int8Weights):
        return {"codes": jnp.round(unit_KbO * 127).astype(jnp.int8).reshape(in_dim, out_dim), "scales": scales_KO / 127}
    packed_PO = pack(nearest(unit_KbO, NF4_VALUES).reshape(in_dim, out_dim))
    if not config.double_quant:
        return {"packed": packed_PO, "scales": scales_KO}
    return {"packed": packed_PO, **quantize_scales(scales_KO)}


def check_blocks(in_dim: int, config: Quantization, path: str) -> None:
    """ValueError where blocks do not divide the input side of the matrix at a path."""
    if in_dim % (config.block or in_dim):
        raise ValueError(
            f"quantize.block={config.block} does not divide the input side of {path}, {in_dim}: take a divisor"
        )


def quantize_scales(scales_KO: Float[Array, "K O"]) -> dict[str, Array]:
    """Scales less their mean, in groups of 256 down the columns, each number the nearest of the dynamic map."""
    mean = jnp.mean(scales_KO)
    flat_N = (scales_KO - mean).T.reshape(-1)  # column after column, as bitsandbytes has its rows
    groups_Gs = jnp.pad(flat_N, (0, -len(flat_N) % SCALE_GROUP)).reshape(-1, SCALE_GROUP)
    group_scales_G = jnp.max(jnp.abs(groups_Gs), axis=1)
    unit_Gs = groups_Gs / jnp.where(group_scales_G == 0, 1.0, group_scales_G)[:, None]
    codes_N = nearest_of_many(unit_Gs, dynamic_map()).reshape(-1)[: len(flat_N)]
    return {"scale_codes": codes_N.reshape(scales_KO.T.shape).T, "group_scales": group_scales_G, "mean": mean}


def dequantize(parts: dict[str, Array], config: Quantization, dtype: Any = jnp.float32) -> Float[Array, "*layers I O"]:
    """The float matrix of the parts of one, or of stacked ones, rounded to `dtype` once."""
    main = parts["codes" if "codes" in parts else "packed"]
    if main.ndim > 2:
        return jax.vmap(lambda parts: dequantize(parts, config, dtype))(parts)
    scales_KO = parts["scales"] if "scales" in parts else dequantize_scales(parts)
    unit_IO = main.astype(jnp.float32) if "codes" in parts else looked_up(unpack(main))
    block = unit_IO.shape[0] // scales_KO.shape[0]
    whole_KbO = unit_IO.reshape(-1, block, unit_IO.shape[1]) * scales_KO[:, None]
    return whole_KbO.reshape(unit_IO.shape).astype(dtype)


def dequantize_scales(parts: dict[str, Array]) -> Float[Array, "K O"]:
    """The scales of the blocks: dynamic map times group scale, plus the mean."""
    codes_KO, group_scales_G = parts["scale_codes"], parts["group_scales"]
    blocks, columns = codes_KO.shape
    group_KO = (jnp.arange(columns)[None, :] * blocks + jnp.arange(blocks)[:, None]) // SCALE_GROUP
    return jnp.asarray(dynamic_map())[codes_KO] * group_scales_G[group_KO] + parts["mean"]


def pack(codes_IO: UInt8[Array, "I O"]) -> UInt8[Array, "P O"]:
    """Two neighbours of a column in one byte, the even one in the high half, as bitsandbytes has it."""
    return (codes_IO[0::2] << 4) | codes_IO[1::2]


def unpack(packed_PO: UInt8[Array, "P O"]) -> UInt8[Array, "I O"]:
    """The codes of `pack`, by a shift that fuses with what follows."""
    shifts = jnp.array([4, 0], jnp.uint8)[None, :, None]
    return ((packed_PO[:, None] >> shifts) & 15).reshape(-1, packed_PO.shape[1])


def looked_up(codes: UInt8[Array, "*any"]) -> Float[Array, "*any"]:
    """The value of every 4-bit code: products and selects, which vectorise on every device where a gather does not.

    The lowest bit chooses by v1 * bit + v0 * (1 - bit), which is exact. As a select between two constants it would put
    both, made as large as the matrix, outside of the scan over layers.
    """
    one = (codes & 1).astype(jnp.float32)
    zero = 1.0 - one
    level: list[Array] = [one * upper + zero * lower for lower, upper in zip(NF4_VALUES[::2], NF4_VALUES[1::2])]
    for bit in (2, 4, 8):
        chosen = (codes & bit) != 0
        level = [jnp.where(chosen, upper, lower) for lower, upper in zip(level[::2], level[1::2])]
    return level[0]


def nearest(unit: Float[Array, "*any"], values: tuple[float, ...]) -> UInt8[Array, "*any"]:
    """Number of the nearest value of a short rising table, the lower one of two that are as near."""
    table = np.asarray(values, np.float32)
    codes = jnp.zeros(unit.shape, jnp.uint8)
    for middle in (table[1:] + table[:-1]) / 2:
        codes += (unit > middle).astype(jnp.uint8)
    return codes


def nearest_of_many(unit: Float[Array, "*any"], values: np.ndarray) -> UInt8[Array, "*any"]:
    """The same for a long table, by bisection."""
    return jnp.searchsorted(jnp.asarray((values[1:] + values[:-1]) / 2), unit).astype(jnp.uint8)


@functools.cache
def dynamic_map(signed: bool = True) -> np.ndarray:
    """256 rising values that are close near zero: "dynamic tree quantisation" (Dettmers 2016, arXiv:1511.04561; with
    the constants of Dettmers et al. 2022, arXiv:2110.02861, for 8 bits: seven decades, 1.0 and 0 among the values)."""
    values = []
    for decade in range(7):
        count = 2 ** (decade if signed else decade + 1)
        edges = np.linspace(0.1, 1.0, count + 1)
        means = 10.0 ** (decade - 6) * (edges[:-1] + edges[1:]) / 2
        values += [*means, *(-means if signed else [])]
    values += [0.0, 1.0]
    return np.sort(np.asarray(values, np.float64)).astype(np.float32)


def quantized_linear(linear: Linear, config: Quantization, path: str) -> QuantizedLinear:
    """The projection with its kernel quantised, layer after layer where it is stacked; bias and adapters stay."""
    kernel = linear.kernel.get_value()
    in_dim = kernel.shape[-2]
    check_blocks(in_dim, config, path)
    flat = kernel.reshape(-1, *kernel.shape[-2:])
    parts = jax.lax.map(lambda one: quantize(one, config), flat)
    parts = {name: part.reshape(*kernel.shape[:-2], *part.shape[1:]) for name, part in parts.items()}
    small = QuantizedLinear(parts, config, axes=linear.axes, in_dim=in_dim, bias=linear.bias, dtype=linear.dtype)
    if linear.lora is not None:
        small.lora = nnx.data(linear.lora)
    return small


def quantize_model(model: CausalLM, config: Quantization) -> CausalLM:
    """The model with every projection of its layers quantised. The output projection stays float, as in QLoRA."""
    model = nnx.clone(model)
    for path, module in list(nnx.iter_modules(model)):
        for name, child in list(vars(module).items()):
            if path[:1] == ("layers",) and isinstance(child, Linear):
                setattr(module, name, quantized_linear(child, config, ".".join(map(str, (*path, name)))))
    return model


def dequantized(model: CausalLM) -> CausalLM:
    """The model with float kernels (float32) that hold exactly what the quantised ones multiply by; adapters stay."""
    model = nnx.clone(model)
    for _, module in list(nnx.iter_modules(model)):
        for name, child in list(vars(module).items()):
            if isinstance(child, QuantizedLinear):
                setattr(module, name, _float_linear(child))
    return model


def _float_linear(small: QuantizedLinear) -> Linear:
    kernel = small.full_kernel()
    linear = nnx.eval_shape(lambda: Linear(1, 1, axes=small.axes, rngs=nnx.Rngs(0), dtype=small.dtype))
    linear.kernel = nnx.Param(kernel, axes=small.axes)
    linear.bias, linear.lora = nnx.data(small.bias), nnx.data(small.lora)
    return linear


def round_trip(config: Quantization) -> Any:
    """A function that quantises a matrix [I, O] and gives it back in float32: what LoftQ makes up for."""
    return lambda kernel_IO: dequantize(quantize(kernel_IO, config), config)
