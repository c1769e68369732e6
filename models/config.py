"""What a model is made of: sizes, and the parts in which model families truly differ, as frozen values.

A family is one `ModelConfig`; the transformer never asks which family it is. For example:

    Llama     ModelConfig(..., pattern=(Block(rotary=Rotary(theta=500_000.0)),))
    GPT-2     ModelConfig(..., norm=LayerNorm(), mlp=Plain(bias=True), pattern=(Block(rotary=None),),
                          attention=Attention(qkv_bias=True, out_bias=True),
                          embedding=Embedding(learned_positions=True, max_positions=1024))
    Gemma 2   ModelConfig(..., norm=RMSNorm(offset=True, sandwich=True), mlp=Gated(activation="gelu_tanh"),
                          attention=Attention(softcap=50.0, query_scale=256**-0.5),
                          embedding=Embedding(scale=3584**0.5, logit_softcap=30.0),
                          pattern=(Block(window=4096), Block()))
    SmolLM3   ModelConfig(..., pattern=(Block(), Block(), Block(), Block(rotary=None)))
"""

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh"]
KernelName = Literal["auto", "dense", "blockwise", "splash", "cudnn", "cudnn_packed"]


@dataclass(frozen=True, kw_only=True)
class RMSNorm:
    """Root-mean-square norm (Zhang and Sennrich 2019), computed in float32."""

    eps: float = 1e-6
    scale: bool = True  # False: no parameters at all
    offset: bool = False  # True: multiplies by (1 + w), as Gemma does
    sandwich: bool = False  # True: the output of attention and of the MLP is normed too (Gemma 2 and 3)


@dataclass(frozen=True, kw_only=True)
class LayerNorm:
    """Mean and variance norm with scale and bias (Ba et al. 2016), computed in float32."""

    eps: float = 1e-5
    bias: bool = True
    sandwich: bool = False


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Rotary frequencies of Llama 3.1: low ones divided by `factor`, high ones kept, a ramp between."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192  # context of the model before it was stretched, tokens


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Every rotary frequency divided by `factor` (Chen et al. 2023; Gemma 3's global layers)."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Rotary positions (Su et al. 2021), halves rotated together as in Hugging Face checkpoints, not interleaved."""

    theta: float = 10_000.0
    fraction: float = 1.0  # share of head_dim that is rotated, from the front
    scaling: Llama3Scaling | LinearScaling | None = None


@dataclass(frozen=True, kw_only=True)
class Attention:
    """What the attention of every layer shares. What differs from layer to layer stands in `Block`."""

    qk_norm: RMSNorm | None = None  # over head_dim, before the rotation
    qkv_bias: bool = False
    out_bias: bool = False
    softcap: float | None = None  # scores become cap * tanh(scores / cap)
    query_scale: float | None = None  # None: head_dim ** -0.5


@dataclass(frozen=True, kw_only=True)
class Gated:
    """down(activation(gate(x)) * up(x)): SwiGLU with silu, GeGLU with gelu (Shazeer 2020)."""

    activation: Activation = "silu"
    bias: bool = False


@dataclass(frozen=True, kw_only=True)
class Plain:
    """down(activation(up(x))): the MLP of GPT-2."""

    activation: Activation = "gelu_tanh"
    bias: bool = False


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """Token table, absolute positions, and the way back to logits."""

    tied: bool = True  # the output projection is the transposed token table
    scale: float = 1.0  # multiplies the embedding, rounded to the compute dtype first (Gemma: sqrt(embed_dim))
    norm: RMSNorm | None = None  # on the embedding, before the first layer
    learned_positions: bool = False  # a table of `max_positions` rows added to the embedding (GPT-2)
    max_positions: int | None = None  # longest sequence the model is made for, tokens; None: not limited
    logit_softcap: float | None = None


@dataclass(frozen=True, kw_only=True)
class Block:
    """What may differ from layer to layer; `ModelConfig.pattern` repeats a tuple of these over the layers."""

    window: int | None = None  # a query sees itself and the window - 1 tokens before it; None: all before it
    rotary: Rotary | None = Rotary()  # None: no positions in this layer


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How the same mathematics is run. Nothing here changes the parameters."""

    remat: Literal["none", "full", "dots"] = "none"  # recompute nothing, whole layers, or all but matrix products
    scan_unroll: int = 0  # layers an iteration of the scan; 0: all, where few and on a CPU (19 % faster), else 1
    kernel: KernelName = "auto"  # attention kernel; any but "auto" is used or refused


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only causal language model."""

    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    norm: RMSNorm | LayerNorm = RMSNorm()
    attention: Attention = Attention()
    mlp: Gated | Plain = Gated()
    embedding: Embedding = Embedding()
    pattern: tuple[Block, ...] = (Block(),)
    dtype: str = "bfloat16"  # matrix products; norms, softmax and logits are float32 always
    param_dtype: str = "float32"
    execution: Execution = Execution()

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "num_layers", "embed_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, not {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"model.num_heads={self.num_heads} is not a multiple of model.num_kv_heads={self.num_kv_heads}: "
                "each key/value head serves the same number of query heads"
            )
        if not self.pattern:
            raise ValueError("model.pattern is empty: give at least one Block()")
        if self.embedding.learned_positions and self.embedding.max_positions is None:
            raise ValueError("model.embedding.learned_positions needs max_positions, the rows of the table")
        for name in ("dtype", "param_dtype"):
            check_dtype(name, getattr(self, name))

    @property
    def blocks(self) -> tuple[Block, ...]:
        """One `Block` for each layer, from first to last."""
        return tuple(self.pattern[i % len(self.pattern)] for i in range(self.num_layers))

    @property
    def period(self) -> int:
        """Smallest number of layers after which the blocks repeat: what one scan iteration writes out."""
        blocks = self.blocks
        return next(p for p in range(1, len(blocks) + 1) if all(blocks[i] == blocks[i % p] for i in range(len(blocks))))

    @property
    def query_scale(self) -> float:
        """Factor on q k^T before the softmax."""
        scale = self.attention.query_scale
        return self.head_dim**-0.5 if scale is None else scale


def check_dtype(name: str, value: str) -> None:
    """Refuses a dtype that the model is not made for, with a sentence."""
    if value in ("float16", "fp16", "half"):
        raise ValueError(
            f"model.{name}={value!r} is refused: float16 overflows at 65504 and needs loss scaling; use 'bfloat16'"
        )
    if value not in ("bfloat16", "float32"):
        raise ValueError(f"model.{name}={value!r}: expected 'bfloat16' or 'float32'")
