"""BERT and RoBERTa: a bidirectional encoder with a masked-language-model head (Devlin et al. 2019, Liu et al. 2019).

    hidden_BTD = model(ids_BT, segment_ids_BT, positions_BT)
    logits_BTV = model.logits(hidden_BTD)

It takes the same batches as the decoder-only model: several documents may share a row, and none sees another.
Shapes: B rows, T tokens, D embed, F mlp, N heads, H head dim, V vocabulary.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from models.config import Activation, Attention, Block, Embedding, Execution, LayerNorm, ModelConfig, Plain, check_dtype
from models.kernels.dense import masked_attention
from models.layers import EMBEDDING_STDDEV, Linear, Norm, activate, truncated_normal


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """A masked language model. position_offset: row of the position table of a document's first token (RoBERTa: 2).

    num_types: token types; all tokens are of type 0. mask_id: what stands for a masked token, pad_id: for none.
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    mlp_dim: int
    max_positions: int = 512
    num_types: int = 2
    position_offset: int = 0
    activation: Activation = "gelu"
    norm_eps: float = 1e-12
    mask_id: int
    pad_id: int = 0
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim={self.embed_dim} is not a multiple of num_heads={self.num_heads}")
        if not 0 <= self.mask_id < self.vocab_size:
            raise ValueError(f"mask_id={self.mask_id} is outside of the vocabulary of {self.vocab_size}")
        for name in ("dtype", "param_dtype"):
            check_dtype(name, getattr(self, name))

    @property
    def num_kv_heads(self) -> int:
        """As many as query heads."""
        return self.num_heads

    @property
    def head_dim(self) -> int:
        """Size of a head."""
        return self.embed_dim // self.num_heads

    @property
    def embedding(self) -> Embedding:
        """The same facts in the words of `ModelConfig`, for what reads both."""
        return Embedding(tied=True, learned_positions=True, max_positions=self.longest)

    @property
    def pattern(self) -> tuple[Block, ...]:
        """Every layer is alike and has no rotation."""
        return (Block(rotary=None),)

    @property
    def attention(self) -> Attention:
        """Biases everywhere."""
        return Attention(qkv_bias=True, out_bias=True)

    @property
    def mlp(self) -> Plain:
        """Not gated."""
        return Plain(activation=self.activation, bias=True)

    @property
    def norm(self) -> LayerNorm:
        """Behind every sum."""
        return LayerNorm(eps=self.norm_eps)

    @property
    def execution(self) -> Execution:
        """Nothing is recomputed; scores are made whole, since every token sees every other."""
        return Execution(kernel="dense")

    @property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return self.max_positions - self.position_offset


AnyModelConfig = ModelConfig | EncoderConfig


class EncoderLayer(nnx.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        common: dict[str, Any] = {"bias": True, "dtype": config.dtype, "param_dtype": config.param_dtype, "rngs": rngs}
        dim, mlp_dim, out = config.embed_dim, config.mlp_dim, (2 * config.num_layers) ** -0.5
        norm = partial(Norm, dim, LayerNorm(eps=config.norm_eps), param_dtype=config.param_dtype)
        self.q = Linear(dim, dim, axes=("embed", "heads"), **common)
        self.k = Linear(dim, dim, axes=("embed", "heads"), **common)
        self.v = Linear(dim, dim, axes=("embed", "heads"), **common)
        self.out = Linear(dim, dim, axes=("heads", "embed"), stddev=dim**-0.5 * out, **common)
        self.attention_norm = norm()
        self.up = Linear(dim, mlp_dim, axes=("embed", "mlp"), **common)
        self.down = Linear(mlp_dim, dim, axes=("mlp", "embed"), stddev=mlp_dim**-0.5 * out, **common)
        self.mlp_norm = norm()
        self.heads, self.activation = config.num_heads, config.activation

    def __call__(self, x_BTD: Float[Array, "B T D"], mask_BTT: Bool[Array, "B T T"]) -> Float[Array, "B T D"]:
        q_BTNH, k_BTNH, v_BTNH = (
            linear(x_BTD).reshape(*x_BTD.shape[:2], self.heads, -1) for linear in (self.q, self.k, self.v)
        )
        y_BTNH = masked_attention(q_BTNH, k_BTNH, v_BTNH, mask_BTT, scale=q_BTNH.shape[-1] ** -0.5, softcap=None)
        x_BTD = self.attention_norm(x_BTD + self.out(y_BTNH.reshape(x_BTD.shape)))
        return self.mlp_norm(x_BTD + self.down(activate(self.activation, self.up(x_BTD))))


class Head(nnx.Module):
    """What turns hidden states into what the token table is compared with: dense, activation, norm; and a bias."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        common: dict[str, Any] = {"bias": True, "dtype": config.dtype, "param_dtype": config.param_dtype, "rngs": rngs}
        self.dense = Linear(config.embed_dim, config.embed_dim, axes=("embed", "norm"), **common)
        self.norm = Norm(config.embed_dim, LayerNorm(eps=config.norm_eps), param_dtype=config.param_dtype)
        self.bias = nnx.Param(jnp.zeros((config.vocab_size,), config.param_dtype), axes=("vocab",))
        self.activation = config.activation

    def __call__(self, hidden_BTD: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        return self.norm(activate(self.activation, self.dense(hidden_BTD)))


class EncoderLM(nnx.Module):
    """Token ids to hidden states to logits of the masked tokens."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.config = config

        def table(rows: int, axis: str) -> nnx.Param:
            shape = (rows, config.embed_dim)
            return nnx.Param(
                truncated_normal(rngs.params(), shape, EMBEDDING_STDDEV, config.param_dtype), axes=(axis, "embed")
            )

        self.embedding = table(config.vocab_size, "vocab")
        self.position_embedding = table(config.max_positions, "positions")
        self.type_embedding = table(config.num_types, "positions")
        self.embedding_norm = Norm(config.embed_dim, LayerNorm(eps=config.norm_eps), param_dtype=config.param_dtype)
        # by name and not in a list: paths of parameters are text everywhere
        self.layers = nnx.Dict({str(i): EncoderLayer(config, rngs=rngs) for i in range(config.num_layers)})
        self.head = Head(config, rngs=rngs)

    def __call__(
        self,
        inputs_BT: Int[Array, "B T"],
        segment_ids_BT: Int[Array, "B T"],
        positions_BT: Int[Array, "B T"],
    ) -> Float[Array, "B T D"]:
        """Hidden states. segment_ids_BT: documents of a row from 1, 0 for padding; positions_BT: from 0 in each."""
        dtype = self.config.dtype
        x_BTD = self.embedding.get_value()[inputs_BT] + self.type_embedding.get_value()[0]
        x_BTD = x_BTD + self.position_embedding.get_value()[positions_BT + self.config.position_offset]
        x_BTD = self.embedding_norm(x_BTD.astype(dtype))
        mask_BTT = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
        for number in range(self.config.num_layers):
            x_BTD = self.layers[str(number)](x_BTD, mask_BTT)
        return x_BTD

    def output_kernel(self) -> Float[Array, "D V"]:
        """The transposed token table, in the compute dtype."""
        return self.embedding.get_value().astype(self.config.dtype).T

    def logits(self, hidden_BTD: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Logits in float32: the head, the token table, the bias."""
        x_BTD = self.head(hidden_BTD)
        product = jnp.dot(x_BTD.astype(self.config.dtype), self.output_kernel(), preferred_element_type=jnp.float32)
        return product + self.head.bias.get_value().astype(jnp.float32)
