"""The decoder-only language model: one transformer, whose parts are those that its `ModelConfig` names.

Shapes: B batch, T sequence, S cache slots, D embed, N heads, K kv heads, H head dim, L layers, V vocabulary.

Parameters of the layers are stacked, [L, ...], and the forward pass scans over them. `unstacked` gives the same model
with one set of arrays a layer, which decoding on a CPU reads without copying.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from models.adapter import Adapter
from models.attention import attention
from models.cache import KVCache, cached_attention, with_kv, write_kv, write_slots
from models.config import Block, ModelConfig
from models.layers import (
    EMBEDDING_STDDEV,
    Linear,
    Norm,
    linear_settings,
    make_mlp,
    residual_stddev,
    rotary_table,
    rotate,
    truncated_normal,
)
from models.products import gathered, looked_up
from models.rows import RowContext
from models.sharding import constrain, param_shardings
from models.stack import Tables, run_layers


class SelfAttention(nnx.Module):
    """Grouped-query attention (Ainslie et al. 2023) with what `config.attention` adds."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        part = config.attention
        q_dim, kv_dim = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        common = linear_settings(config, rngs)
        self.q = Linear(config.embed_dim, q_dim, axes=("embed", "heads"), bias=part.qkv_bias, **common)
        self.k = Linear(config.embed_dim, kv_dim, axes=("embed", "kv_heads"), bias=part.qkv_bias, **common)
        self.v = Linear(config.embed_dim, kv_dim, axes=("embed", "kv_heads"), bias=part.qkv_bias, **common)
        self.out = Linear(
            q_dim,
            config.embed_dim,
            axes=("heads", "embed"),
            bias=part.out_bias,
            stddev=residual_stddev(config, q_dim),
            **common,
        )
        norm = partial(Norm, config.head_dim, param_dtype=config.param_dtype)
        self.q_norm = None if part.qk_norm is None else norm(part.qk_norm)
        self.k_norm = None if part.qk_norm is None else norm(part.qk_norm)

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        segment_ids_BT: Int[Array, "B T"],
        block: Block,
        tables: Tables,
        cache: KVCache | None = None,
        rows: RowContext | None = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """The layer's output, and its cache (`k`, `v` of this layer alone) with the new tokens in it."""
        config = self.config
        batch, length, _ = x_BTD.shape
        q_BTNH = self.q(x_BTD, rows).reshape(batch, length, config.num_heads, config.head_dim)
        k_BTKH = self.k(x_BTD, rows).reshape(batch, length, config.num_kv_heads, config.head_dim)
        v_BTKH = self.v(x_BTD, rows).reshape(batch, length, config.num_kv_heads, config.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTNH, k_BTKH = self.q_norm(q_BTNH), self.k_norm(k_BTKH)
        if block.rotary is not None:
            q_BTNH, k_BTKH = rotate(q_BTNH, tables[block.rotary]), rotate(k_BTKH, tables[block.rotary])
        common: Any = {"scale": config.query_scale, "window": block.window, "softcap": config.attention.softcap}
        kv = None
        if cache is None:
            kernel = config.execution.kernel
            out_BTNH = attention(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT=segment_ids_BT, kernel=kernel, **common)
        else:
            kv = write_kv(cache, k_BTKH, v_BTKH)
            out_BTNH = cached_attention(q_BTNH, with_kv(cache, *kv), segment_ids_BT, **common)
        return self.out(out_BTNH.reshape(batch, length, -1), rows), kv


class DecoderLayer(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); with `sandwich` norms, both outputs are normed as well."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        norm = partial(Norm, config.embed_dim, config.norm, param_dtype=config.param_dtype)
        self.attention_norm = norm()
        self.attention = SelfAttention(config, rngs=rngs)
        self.mlp_norm = norm()
        self.mlp = make_mlp(config, rngs)
        self.attention_out_norm = norm() if config.norm.sandwich else None
        self.mlp_out_norm = norm() if config.norm.sandwich else None

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        segment_ids_BT: Int[Array, "B T"],
        block: Block,
        tables: Tables,
        cache: KVCache | None = None,
        rows: RowContext | None = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        y_BTD, kv = self.attention(self.attention_norm(x_BTD), segment_ids_BT, block, tables, cache, rows)
        x_BTD = x_BTD + (y_BTD if self.attention_out_norm is None else self.attention_out_norm(y_BTD))
        y_BTD = self.mlp(self.mlp_norm(x_BTD), rows)
        x_BTD = x_BTD + (y_BTD if self.mlp_out_norm is None else self.mlp_out_norm(y_BTD))
        return constrain(x_BTD, ("batch", "sequence", None)), kv


class CausalLM(nnx.Module):
    """Token ids to hidden states to logits.

    Args:
      config: what the model is made of.
      rngs: `nnx.Rngs(seed)`; the values drawn depend on the seed alone, not on the mesh.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        part, dtype, embed_dim = config.embedding, config.param_dtype, config.embed_dim

        def table(rows: int, axis: str) -> nnx.Param:
            values = truncated_normal(rngs.params(), (rows, embed_dim), EMBEDDING_STDDEV, dtype)
            return nnx.Param(values, axes=(axis, "embed"))

        self.embedding = table(config.vocab_size, "vocab")
        self.position_embedding = table(part.max_positions or 0, "positions") if part.learned_positions else None
        self.embedding_norm = None if part.norm is None else Norm(embed_dim, part.norm, param_dtype=dtype)
        self.layers: DecoderLayer | nnx.List = stacked_layers(config, rngs)
        self.final_norm = Norm(embed_dim, config.norm, param_dtype=dtype)
        head = partial(Linear, axes=("embed", "vocab"), rngs=rngs, dtype=config.dtype, param_dtype=dtype)
        self.lm_head = None if part.tied else head(embed_dim, config.vocab_size)
        self.embedding_lora: Adapter | None = None
        self.lm_head_lora: Adapter | None = None
        self.tied_lora = False  # whether `embedding_lora` acts on the logits too

    def __call__(
        self,
        inputs_BT: Int[Array, "B T"],
        segment_ids_BT: Int[Array, "B T"],
        positions_BT: Int[Array, "B T"],
        cache: KVCache | None = None,
        rows: RowContext | None = None,
    ) -> Any:
        """Hidden states [B, T, D] after the last norm; with a cache, (hidden states, the cache with these tokens).

        They are what `output_kernel` multiplies: where the output has adapters, both have `hidden_dim` in place of D.

        Args:
          segment_ids_BT: documents of a packed row from 1; 0 is padding. No token sees another segment.
          positions_BT: place of each token in its document, from 0.
          rows: the adapter of each row and the keys of dropout; None: adapter 0, if there is one, and no dropout.
        """
        x_BTD = self.embed(inputs_BT, positions_BT, rows)
        rotaries = {block.rotary for block in self.config.pattern if block.rotary is not None}
        tables = {rotary: rotary_table(rotary, self.config.head_dim, positions_BT) for rotary in rotaries}
        if cache is None:
            x_BTD, _ = run_layers(self.layers, self.config, x_BTD, segment_ids_BT, tables, None, rows)
            return self._finished(x_BTD, rows)
        cache = KVCache(
            cache.k, cache.v, write_slots(cache.segment_ids_BS, segment_ids_BT, cache.length_B), cache.length_B
        )
        x_BTD, (k, v) = run_layers(self.layers, self.config, x_BTD, segment_ids_BT, tables, cache, rows)
        length_B = cache.length_B + jnp.sum(segment_ids_BT > 0, axis=1, dtype=cache.length_B.dtype)
        return self._finished(x_BTD, rows), KVCache(k, v, cache.segment_ids_BS, length_B)

    @property
    def hidden_dim(self) -> int:
        """Width of the hidden states: embed_dim, and what the adapters of the output add."""
        return jax.eval_shape(self.output_kernel).shape[0]

    def _finished(self, x_BTD: jax.Array, rows: RowContext | None) -> jax.Array:
        """The last norm, and behind it what the adapters of the output make of it."""
        hidden_BTD, adapter = self.final_norm(x_BTD), self._output_adapter()
        return hidden_BTD if adapter is None else adapter.extend(hidden_BTD, rows)

    def _output_adapter(self) -> Adapter | None:
        """The adapter that acts on the logits: the output's own, or that of a table that is tied with its adapter."""
        if self.tied_lora and self.embedding_lora is not None:
            return self.embedding_lora.transposed()
        return self.lm_head_lora

    def embed(
        self, inputs_BT: Int[Array, "B T"], positions_BT: Int[Array, "B T"], rows: RowContext | None = None
    ) -> Float[Array, "B T D"]:
        """Token (and position) embeddings, scaled and normed as the config says, in the compute dtype."""
        part, dtype = self.config.embedding, self.config.dtype
        x_BTD = looked_up(self.embedding.get_value().astype(dtype), inputs_BT, ("vocab", "embed"))
        if self.embedding_lora is not None:
            x_BTD = self.embedding_lora.lookup(inputs_BT, x_BTD, self.embedding.get_value, rows)
        if part.scale != 1.0:
            x_BTD = x_BTD * jnp.asarray(part.scale, dtype)
        if self.position_embedding is not None:
            x_BTD = x_BTD + self.position_embedding.get_value().astype(dtype)[positions_BT]
        if self.embedding_norm is not None:
            x_BTD = self.embedding_norm(x_BTD)
        return constrain(x_BTD, ("batch", "sequence", None))

    def output_kernel(self) -> Float[Array, "D V"]:
        """The projection to the vocabulary in the compute dtype: what a loss over vocabulary chunks multiplies by."""
        kernel_DV = self.embedding.get_value().T if self.lm_head is None else self.lm_head.kernel.get_value()
        kernel_DV = gathered(kernel_DV.astype(self.config.dtype), ("embed", "vocab"))
        adapter = self._output_adapter()
        return kernel_DV if adapter is None else adapter.extend_kernel(kernel_DV)

    def logits(self, hidden_BTD: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Logits in float32, soft cap included."""
        kernel_DV = self.output_kernel()
        logits_BTV = jnp.dot(hidden_BTD.astype(kernel_DV.dtype), kernel_DV, preferred_element_type=jnp.float32)
        return soft_capped(logits_BTV, self.config.embedding.logit_softcap)


def soft_capped(logits: jax.Array, cap: float | None) -> jax.Array:
    """cap * tanh(logits / cap), or the logits themselves."""
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def stacked_layers(config: ModelConfig, rngs: nnx.Rngs) -> DecoderLayer:
    """All layers as one module whose arrays have the layers in front, each layer drawn from its own key."""

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap(in_axes=0, out_axes=0)
    def create(rngs: nnx.Rngs) -> DecoderLayer:
        return DecoderLayer(config, rngs=rngs)

    return create(rngs)


def unstacked(model: CausalLM) -> CausalLM:
    """The same model with `layers` as a list of layers, each with arrays of its own."""
    graph, state = nnx.split(model.layers)
    layers = [
        nnx.merge(graph, jax.tree.map(lambda leaf, index=index: leaf[index], state))
        for index in range(model.config.num_layers)
    ]
    whole = nnx.clone(model)
    whole.layers = nnx.List(layers)
    return whole


def abstract_model(config: ModelConfig) -> CausalLM:
    """The model with shapes in place of arrays: nothing is allocated."""
    return nnx.eval_shape(lambda: CausalLM(config, rngs=nnx.Rngs(0)))


def create_model(config: ModelConfig, mesh: Mesh, seed: int = 0) -> CausalLM:
    """A model with fresh parameters, each made on the devices that hold it and never whole in one place."""
    graph, shapes = nnx.split(abstract_model(config))
    create = jax.jit(
        lambda: nnx.state(CausalLM(config, rngs=nnx.Rngs(seed))), out_shardings=param_shardings(shapes, mesh)
    )
    with jax.set_mesh(mesh):
        return nnx.merge(graph, create())
