"""The encoder-decoder of MarianMT (Junczys-Dowmunt et al. 2018): post-norm, sinusoidal positions, one shared embedding.

    hidden_BSD = model.encode(source_BS, mask_BS)
    logits_BTV = model.logits(model.decode(targets_BT, hidden_BSD, mask_BS))

Decoding with a cache lives in models.seq2seq_decode. Shapes: B rows, S source tokens, T target tokens, C cache slots,
D embed, F mlp, N heads, H head dim, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from models.config import LayerNorm, check_dtype
from models.kernels.dense import masked_attention
from models.layers import EMBEDDING_STDDEV, Linear, Norm, truncated_normal

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "swish": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu": partial(jax.nn.gelu, approximate=False),
}
NORM = LayerNorm(eps=1e-5)


@dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig:
    """A MarianMT model. start_id: what every target begins with (Marian: the padding id)."""

    vocab_size: int
    embed_dim: int
    encoder_layers: int
    decoder_layers: int
    encoder_heads: int
    decoder_heads: int
    encoder_mlp_dim: int
    decoder_mlp_dim: int
    max_positions: int = 512
    activation: Literal["swish", "relu", "gelu"] = "swish"
    scale_embedding: bool = True  # embeddings are multiplied by sqrt(embed_dim)
    pad_id: int
    eos_id: int = 0
    start_id: int
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_dtype("dtype", self.dtype)
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r}: expected one of {', '.join(ACTIVATIONS)}")
        for heads in (self.encoder_heads, self.decoder_heads):
            if self.embed_dim % heads or self.embed_dim % 2:
                raise ValueError(f"embed_dim={self.embed_dim} must be even and a multiple of the heads ({heads})")


class Attention(nnx.Module):
    """Attention of one sequence to itself or to another; keys and values may come from a cache."""

    def __init__(self, dim: int, heads: int, *, dtype: str, rngs: nnx.Rngs):
        linear = partial(Linear, dim, dim, axes=("embed", "heads"), bias=True, dtype=dtype, rngs=rngs)
        self.q, self.k, self.v = linear(), linear(), linear()
        self.out = Linear(dim, dim, axes=("heads", "embed"), bias=True, dtype=dtype, rngs=rngs)
        self.heads = heads

    def split(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T N H"]:
        """The last dim as heads."""
        return x_BTD.reshape(*x_BTD.shape[:2], self.heads, -1)

    def keys_values(self, x_BSD: Float[Array, "B S D"]) -> tuple[Float[Array, "B S N H"], Float[Array, "B S N H"]]:
        """Keys and values of what is attended to."""
        return self.split(self.k(x_BSD)), self.split(self.v(x_BSD))

    def __call__(self, x_BTD: Float[Array, "B T D"], kv: tuple[Any, Any], mask_BTS: Bool[Array, "B T S"]) -> Any:
        q_BTNH = self.split(self.q(x_BTD))
        out_BTNH = masked_attention(q_BTNH, *kv, mask_BTS, scale=q_BTNH.shape[-1] ** -0.5, softcap=None)
        return self.out(out_BTNH.reshape(x_BTD.shape))


class Layer(nnx.Module):
    """Attention to itself, to the source (decoder only), then the MLP; a norm after each sum."""

    def __init__(self, config: Seq2SeqConfig, *, decoder: bool, rngs: nnx.Rngs):
        dim, dtype = config.embed_dim, config.dtype
        heads = config.decoder_heads if decoder else config.encoder_heads
        mlp_dim = config.decoder_mlp_dim if decoder else config.encoder_mlp_dim
        self.attention = Attention(dim, heads, dtype=dtype, rngs=rngs)
        self.attention_norm = Norm(dim, NORM)
        self.cross = Attention(dim, heads, dtype=dtype, rngs=rngs) if decoder else None
        self.cross_norm = Norm(dim, NORM) if decoder else None
        self.up = Linear(dim, mlp_dim, axes=("embed", "mlp"), bias=True, dtype=dtype, rngs=rngs)
        self.down = Linear(mlp_dim, dim, axes=("mlp", "embed"), bias=True, dtype=dtype, rngs=rngs)
        self.mlp_norm = Norm(dim, NORM)
        self.activation = config.activation

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        kv: tuple[Any, Any],
        mask_BTC: Bool[Array, "B T C"],
        cross_kv: tuple[Any, Any] | None = None,
        cross_mask_BTS: Bool[Array, "B T S"] | None = None,
    ) -> Float[Array, "B T D"]:
        x_BTD = self.attention_norm(x_BTD + self.attention(x_BTD, kv, mask_BTC))
        if self.cross is not None and self.cross_norm is not None:
            assert cross_kv is not None and cross_mask_BTS is not None
            x_BTD = self.cross_norm(x_BTD + self.cross(x_BTD, cross_kv, cross_mask_BTS))
        return self.after_attention(x_BTD)

    def after_attention(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The MLP and its norm."""
        return self.mlp_norm(x_BTD + self.down(ACTIVATIONS[self.activation](self.up(x_BTD))))


class Seq2SeqLM(nnx.Module):
    """Source ids to target logits."""

    def __init__(self, config: Seq2SeqConfig, *, rngs: nnx.Rngs):
        self.config = config
        shape = (config.vocab_size, config.embed_dim)
        self.embedding = nnx.Param(
            truncated_normal(rngs.params(), shape, EMBEDDING_STDDEV, "float32"), axes=("vocab", "embed")
        )
        self.encoder = nnx.List([Layer(config, decoder=False, rngs=rngs) for _ in range(config.encoder_layers)])
        self.decoder = nnx.List([Layer(config, decoder=True, rngs=rngs) for _ in range(config.decoder_layers)])
        self.logits_bias = nnx.Param(jnp.zeros((config.vocab_size,), "float32"), axes=("vocab",))

    def embed(self, ids_BT: Int[Array, "B T"], positions_BT: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Scaled embeddings with their positions added."""
        config = self.config
        x_BTD = self.embedding.get_value()[ids_BT].astype(config.dtype)
        scale = math.sqrt(config.embed_dim) if config.scale_embedding else 1.0
        table_PD = jnp.asarray(sinusoids(config.max_positions, config.embed_dim), config.dtype)
        return x_BTD * jnp.asarray(scale, config.dtype) + table_PD[positions_BT]

    def encode(self, source_BS: Int[Array, "B S"], mask_BS: Bool[Array, "B S"]) -> Float[Array, "B S D"]:
        """Hidden states of the source; mask_BS: True for tokens, False for padding."""
        positions_BS = jnp.broadcast_to(jnp.arange(source_BS.shape[1]), source_BS.shape)
        x_BSD = self.embed(source_BS, positions_BS)
        mask_BSS = jnp.broadcast_to(mask_BS[:, None, :], (*source_BS.shape, source_BS.shape[1]))
        for layer in self.encoder:
            x_BSD = layer(x_BSD, layer.attention.keys_values(x_BSD), mask_BSS)
        return x_BSD

    def cross_cache(self, hidden_BSD: Float[Array, "B S D"]) -> list[tuple[jax.Array, jax.Array]]:
        """Keys and values of the source for every decoder layer: computed once a sentence."""
        return [layer.cross.keys_values(hidden_BSD) for layer in self.decoder if layer.cross is not None]

    def decode(
        self, targets_BT: Int[Array, "B T"], hidden_BSD: Float[Array, "B S D"], mask_BS: Bool[Array, "B S"]
    ) -> Float[Array, "B T D"]:
        """Hidden states of whole targets, each seeing those before it: training and parity, no cache."""
        batch, length = targets_BT.shape
        x_BTD = self.embed(targets_BT, jnp.broadcast_to(jnp.arange(length), targets_BT.shape))
        causal_BTT = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (batch, length, length))
        cross_BTS = jnp.broadcast_to(mask_BS[:, None, :], (batch, length, mask_BS.shape[1]))
        for layer, cross_kv in zip(self.decoder, self.cross_cache(hidden_BSD)):
            x_BTD = layer(x_BTD, layer.attention.keys_values(x_BTD), causal_BTT, cross_kv, cross_BTS)
        return x_BTD

    def output_kernel(self) -> Float[Array, "D V"]:
        """The projection to the vocabulary, the embedding's transpose, in the compute dtype."""
        return self.embedding.get_value().astype(self.config.dtype).T

    def logits(
        self, hidden_BTD: Float[Array, "*batch D"], kernel_DV: Float[Array, "D V"] | None = None
    ) -> Float[Array, "*batch V"]:
        """Logits in float32, the final bias included. kernel_DV: the output kernel where it was laid out before."""
        kernel_DV = self.output_kernel() if kernel_DV is None else kernel_DV
        return jnp.dot(hidden_BTD, kernel_DV, preferred_element_type=jnp.float32) + self.logits_bias.get_value()


def sinusoids(positions: int, dim: int) -> np.ndarray:
    """[positions, dim]: sines of all frequencies, then cosines (Vaswani et al. 2017, in Marian's order)."""
    angles = np.arange(positions)[:, None] / np.power(10_000.0, 2 * (np.arange(dim // 2)) / dim)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)
