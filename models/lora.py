"""LoRA and its kin (models/adapter.py) put into a model by path, merged, and taken out again.

    model = add_lora(model, LoRA(targets=("q", "v"), rank=8, alpha=32.0), rngs=nnx.Rngs(0))
    model(inputs, segment_ids, positions)                                           # with adapter 0
    model(inputs, segment_ids, positions, rows=RowContext(adapter_ids_B=[0, -1]))   # row 1 with the base alone

Shapes: A adapters, I and O the sides of a projection, R rank, B batch, T sequence, V vocabulary, D embed.

A projection keeps its own parameters where they were and gets one child, `lora`: an `Adapter` with `a` [A, I, R] and
`b` [A, R, O], stacked over layers as the kernel is. A checkpoint's names for the base therefore stay what they are.
Adapters of the token table and of the output are `embedding_lora` and `lm_head_lora` of the model.
"""

import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from models.adapter import Adapter, column_lengths
from models.layers import Linear
from models.low_rank import split_kernel
from models.transformer import CausalLM

ALL_LINEAR, TINY = "all-linear", jnp.finfo(jnp.float32).tiny
Init = Literal["kaiming", "gaussian", "pissa", "pissa_fast", "olora", "loftq"]
CHANGES_BASE = ("pissa", "pissa_fast", "olora", "loftq")  # beginnings that leave another base than the one given


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Which projections get adapters, and of what kind. The names are PEFT's, or close to them.

    targets: names such as ("q", "v"), one regular expression over the whole dotted path, or "all-linear" (every
    projection of the layers). Known paths: layers.attention.{q,k,v,out}, layers.mlp.{gate,up,down}, embedding, lm_head.
    rank, alpha: the update is alpha / rank * a b, with rslora alpha / sqrt(rank) (Kalajdzievski 2023).
    rank_pattern, alpha_pattern: (pattern, value) for some of the targets; the first that matches counts.
    dropout: of the adapter's input, in training alone. dora: a trained length of every output column (Liu et al. 2024).
    init: "kaiming" (PEFT's own) and "gaussian" begin as the base; "pissa" holds the largest singular directions (Meng
    et al. 2024; "pissa_fast" finds them by subspace iteration), "olora" the first of QR's (Büyükakyüz 2024), "loftq"
    the error of quantisation (Li et al. 2023).
    bias: which biases are trained: none, all, or those of the targets. also_train: patterns of other parameters that
    are trained whole. tie_embedding: the adapter of a tied table acts where it embeds and where it makes logits;
    otherwise "embedding" and "lm_head" are two targets, as in PEFT. names: one for every adapter; several train
    in one run where each row of the data chooses one (`data.loader.LoaderConfig.adapters`).
    """

    targets: str | tuple[str, ...] = ("q", "v")
    rank: int = 8
    alpha: float = 32.0
    dropout: float = 0.05
    rank_pattern: tuple[tuple[str, int], ...] = ()
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    rslora: bool = False
    dora: bool = False
    init: Init = "kaiming"
    bias: Literal["none", "all", "lora_only"] = "none"
    also_train: tuple[str, ...] = ()
    tie_embedding: bool = False
    names: tuple[str, ...] = ("default",)

    def __post_init__(self) -> None:
        if self.rank < 1 or any(rank < 1 for _, rank in self.rank_pattern):
            raise ValueError(f"lora.rank={self.rank}, rank_pattern={self.rank_pattern}: every rank must be at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"lora.dropout must be at least 0 and below 1, not {self.dropout}")
        if not min(self.alpha, *(alpha for _, alpha in self.alpha_pattern), 1.0) > 0.0:
            raise ValueError(f"lora.alpha={self.alpha}, alpha_pattern={self.alpha_pattern}: each must be above 0")
        if not self.targets:
            raise ValueError("lora.targets is empty: name projections, or take 'all-linear'")
        if not self.names or len(set(self.names)) != len(self.names) or "base" in self.names:
            raise ValueError(f"lora.names={self.names}: give every adapter a name of its own, other than 'base'")
        if self.tie_embedding and (self.dora or "lm_head" in self.targets):
            raise ValueError("lora.tie_embedding takes 'embedding' alone as a target and goes without dora")

    def rank_of(self, path: str) -> int:
        """Rank of the adapter at a path."""
        return next((rank for pattern, rank in self.rank_pattern if matches(pattern, path)), self.rank)

    def scale_of(self, path: str) -> float:
        """Factor on a b at a path."""
        alpha = next((alpha for pattern, alpha in self.alpha_pattern if matches(pattern, path)), self.alpha)
        rank = self.rank_of(path)
        return alpha / rank**0.5 if self.rslora else alpha / rank


def matches(pattern: str, path: str) -> bool:
    """Whether a dotted path contains the dotted names of the pattern, or is matched whole by it as an expression."""
    try:
        return f".{pattern}." in f".{path}." or re.fullmatch(pattern, path) is not None
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from None


def add_lora(
    model: CausalLM, config: LoRA, *, rngs: nnx.Rngs, round_trip: Callable[[Array], Array] | None = None
) -> CausalLM:
    """The model with adapters where `config.targets` asks for them; the arrays of the base are shared.

    Works on stacked and unstacked models, and under tracing. round_trip: a kernel quantised and back, where the model
    is quantised afterwards: what init="loftq" makes up for, and whose lengths DoRA begins with.
    Errors: ValueError where a pattern matches nothing or a rank exceeds a side of its matrix.
    """
    model = nnx.clone(model)
    places = adaptable(model)
    chosen = set(choose(config, {plain(path) for path in places}))
    key = rngs.params()
    for path, module in places.items():
        if plain(path) in chosen:
            attach(model, path, module, config, path_key(key, path), round_trip)
    return model


def adaptable(model: CausalLM) -> dict[str, Any]:
    """Everything that can get an adapter, by dotted path: projections, and the model for its table and its output."""
    from models.quantize import QuantizedLinear

    places: dict[str, Any] = {"embedding": model, "lm_head": model}
    for path, module in nnx.iter_modules(model):
        name = ".".join(map(str, path))
        if isinstance(module, Linear | QuantizedLinear) and name != "lm_head":
            places[name] = module
    return places


def plain(path: str) -> str:
    """A path without the numbers of layers: the same for a stacked and an unstacked model."""
    return re.sub(r"\.\d+(?=\.|$)", "", path)


def choose(config: LoRA, paths: Iterable[str]) -> list[str]:
    """The paths that get adapters; ValueError where a pattern matches none of them."""
    paths = sorted(paths)
    if config.targets == ALL_LINEAR:
        chosen = [path for path in paths if path not in ("embedding", "lm_head")]
    else:
        patterns = (config.targets,) if isinstance(config.targets, str) else config.targets
        check_patterns("lora.targets", patterns, paths)
        chosen = [path for path in paths if any(matches(pattern, path) for pattern in patterns)]
    for name in ("rank_pattern", "alpha_pattern"):
        check_patterns(f"lora.{name}", [pattern for pattern, _ in getattr(config, name)], chosen)
    if config.tie_embedding and ("embedding" not in chosen or "lm_head" in chosen):
        raise ValueError(f"lora.tie_embedding needs 'embedding' and no 'lm_head' among lora.targets={config.targets!r}")
    return chosen


def check_patterns(name: str, patterns: Iterable[str], paths: Iterable[str]) -> None:
    """ValueError where one of the patterns matches no path."""
    paths = list(paths)
    for pattern in patterns:
        if not any(matches(pattern, path) for path in paths):
            shown = sorted({plain(path) for path in paths})
            known = ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "")
            raise ValueError(f"{name}: {pattern!r} matches nothing in this model; its paths are {known}")


def attach(
    model: CausalLM, path: str, module: Any, config: LoRA, key: Array, round_trip: Callable[[Array], Array] | None
) -> None:
    """Puts new adapters at one path of the model, in place."""
    name = plain(path)
    if name in ("embedding", "lm_head"):
        head: Any = model.lm_head
        tied = head is None
        if name == "lm_head" and not tied:
            kernel, axes = head.kernel, ("embed", "vocab")
        else:
            kernel, axes = model.embedding, ("vocab", "embed") if name == "embedding" else ("embed", "vocab")
        values = kernel.get_value().T if name == "lm_head" and tied else kernel.get_value()
        if config.init not in ("kaiming", "gaussian"):
            raise ValueError(f"lora.init={config.init!r} is for projections of the layers, not for {name!r}")
        adapter, _ = new_adapter(values, name, axes, config, key, None, model.config.dtype)
        setattr(model, f"{name}_lora", nnx.data(adapter))
        if name == "embedding":
            model.tied_lora = config.tie_embedding
            if config.tie_embedding and not tied:
                raise ValueError("lora.tie_embedding: this model has an output matrix of its own; target 'lm_head'")
        return
    adapt_linear(module, name, config, key, round_trip)


def adapt_linear(
    module: Any, path: str, config: LoRA, key: Array, round_trip: Callable[[Array], Array] | None = None
) -> None:
    """Puts new adapters on one projection, in place."""
    adapter, kernel = new_adapter(module.full_kernel(), path, module.axes, config, key, round_trip, module.dtype)
    if kernel is not None:
        if not hasattr(module, "kernel"):
            raise ValueError(f"lora.init={config.init!r} changes the base: add adapters first, then quantise")
        module.kernel = module.kernel.replace(kernel)
    module.lora = nnx.data(adapter)


def path_key(key: Array, path: str) -> Array:
    """The key of the adapters at one path: no other target changes what they draw."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


def new_adapter(
    kernel: Float[Array, "*layers I O"],
    path: str,
    axes: tuple[str, str],
    config: LoRA,
    key: Array,
    round_trip: Callable[[Array], Array] | None,
    dtype: str,
) -> tuple[Adapter, Array | None]:
    """Fresh adapters of one matrix, and the matrix that they begin from where that is not the one given."""
    *layers, in_dim, out_dim = kernel.shape
    rank, scale, count = config.rank_of(path), config.scale_of(path), len(config.names)
    if rank > min(in_dim, out_dim):
        raise ValueError(
            f"lora.rank={rank} is above a side of {path}, which is {in_dim} x {out_dim}: take at most "
            f"{min(in_dim, out_dim)}"
        )
    a_shape, b_shape = (*layers, count, in_dim, rank), (*layers, count, rank, out_dim)
    base = None
    if config.init in CHANGES_BASE:
        if count > 1:
            raise ValueError(f"lora.init={config.init!r} changes the base, so it goes with one adapter, not {count}")
        a, b, base = split_kernel(kernel, rank, scale, config.init, key, round_trip)
        a, b = a[..., None, :, :], b[..., None, :, :]
    elif path == "embedding":  # PEFT's: the lookup begins at zero, the way back is normal
        a, b = jnp.zeros(a_shape), jax.random.normal(key, b_shape)
    else:
        b = jnp.zeros(b_shape)
        if config.init == "gaussian":
            a = jax.random.normal(key, a_shape) / rank
        else:  # kaiming_uniform_(a=sqrt(5)) of torch: bounds 1 / sqrt(fan in)
            a = jax.random.uniform(key, a_shape, minval=-(in_dim**-0.5), maxval=in_dim**-0.5)
    magnitude = None
    if config.dora and base is None:  # a b is zero: the lengths of the matrix as it will rest. Not by column_lengths:
        # of a b that is the constant zero the CPU compiler of jaxlib 0.10.2 (its YNN fusions) makes NaN
        rests = jax.lax.map(round_trip or jnp.float32, kernel.reshape(-1, in_dim, out_dim)).reshape(kernel.shape)
        squares = jnp.sum(jnp.square(rests), axis=-2, keepdims=True)
        magnitude = jnp.broadcast_to(jnp.sqrt(jnp.maximum(squares, TINY)), (*layers, count, out_dim))
    elif base is not None and config.dora:
        of_sum = partial(column_lengths, scales=(scale,) * count)
        for _ in layers:
            of_sum = jax.vmap(of_sum)
        magnitude = of_sum(base, a, b)
    scales = (scale,) * count
    adapter = Adapter(a, b, magnitude, axes=axes, scales=scales, dropout=config.dropout, dtype=dtype, path=path)
    return adapter, base


def merge_lora(model: CausalLM, adapter: int = 0) -> CausalLM:
    """The plain model whose kernels have one adapter's updates in them; a quantised base becomes float.

    Where the adapter of a tied table acts on one of its two uses alone, the merged model has two tables.
    """
    from models.quantize import dequantized

    merged: Any = dequantized(model)
    modules: Any = nnx.iter_modules(merged)
    for _, module in modules:
        if getattr(module, "lora", None) is not None:
            kernel = module.kernel.get_value()
            module.kernel = module.kernel.replace(module.lora.merged(kernel, adapter).astype(kernel.dtype))
            module.lora = None
    into, out, both = model.embedding_lora, model.lm_head_lora, model.tied_lora
    if into is None and out is None:
        return merged
    table = model.embedding.get_value()
    if model.lm_head is None and not both:
        merged.lm_head = nnx.data(untied_head(merged))
        merged.config = replace(merged.config, embedding=replace(merged.config.embedding, tied=False))
    if into is not None:
        merged.embedding = merged.embedding.replace(into.merged(table, adapter).astype(table.dtype))
    if out is not None:
        assert merged.lm_head is not None
        kernel = merged.lm_head.kernel.get_value()
        merged.lm_head.kernel = merged.lm_head.kernel.replace(out.merged(kernel, adapter).astype(kernel.dtype))
    merged.embedding_lora, merged.lm_head_lora, merged.tied_lora = None, None, False
    return merged


def untied_head(model: CausalLM) -> Linear:
    """An output projection that holds the transposed token table."""
    config = model.config
    axes = ("embed", "vocab")
    shapes: Any = nnx.eval_shape(lambda: Linear(1, 1, axes=axes, rngs=nnx.Rngs(0), dtype=config.dtype))
    shapes.kernel = shapes.kernel.replace(model.embedding.get_value().T)
    return shapes


def without_lora(model: CausalLM) -> CausalLM:
    """The base alone; arrays are shared. Errors: none: a model without adapters comes back as it is."""
    base = nnx.clone(model)
    modules: Any = nnx.iter_modules(base)
    for _, module in modules:
        if getattr(module, "lora", None) is not None:
            module.lora = None
    base.embedding_lora, base.lm_head_lora, base.tied_lora = None, None, False
    return base
