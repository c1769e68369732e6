"""Memory of one device during a step, by kind, from shapes alone.

Exact for the state. What a step makes on the way is a model of what the compilers keep, with coefficients fitted to
their figures for a few sizes: an estimate; `--compile` asks the compiler itself.

Shapes: T tokens of a micro-batch on the device, D embed, N heads, K kv heads, H head dim, F mlp, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from models.config import Gated
from models.encoder import AnyModelConfig
from models.kernels.blockwise import GROUPS
from train.config import Config
from train.cost import leaves, local_bytes, micro_tokens
from train.parameters import weight_bytes

LANES = 128  # float32 numbers that splash keeps of every query and head: its log-sum-exp, once in each lane
# What a compiler's heap takes over the arrays that are in it at once, for the gaps between them. The TPU compiler gave
# 1.40 (1B on v5e:4x4) and 1.51 (8B on v6e:16x16): temporaries over its peak without the arguments; CPU and CUDA 1.00.
HEAP = {"cpu": 1.0, "gpu": 1.0, "tpu": 1.45}


def memory_by_kind(config: Config, state: Any, sizes: Mapping[str, int], platform: str | None = None) -> dict[str, int]:
    """Bytes of one device at the moment of a step that needs the most: the backward pass of a layer, or the logits.

    sizes: devices of every mesh axis; the state may have been described on any mesh. platform: "cpu", "gpu" or "tpu";
    None: a CPU for a model that computes in float32, else a TPU.
    """
    model = config.model
    platform = platform or ("cpu" if model.dtype == "float32" else "tpu")
    tokens, item = micro_tokens(config, sizes), jnp.dtype(model.dtype).itemsize
    layer = layer_bytes(config, sizes, tokens, item, platform)
    output = output_bytes(config, sizes, tokens, item)
    accumulated = 2 if config.train.grad_accum_steps > 1 else 1  # the sum so far, and the next micro-batch's
    kept = {
        **weight_bytes(state, lambda leaf: local_bytes(leaf, sizes)),
        "optimizer": local_bytes(state.opt_state, sizes),
        "EMA": local_bytes(state.ema, sizes),
    }
    heap = {
        "parameters, cast once": cast_bytes(config, state, sizes, item),
        "gradients": accumulated * local_bytes(state.params, sizes),
        "activations saved": saved_bytes(config, sizes, tokens, item, platform),
        "one layer's backward pass" if layer >= output else "logits": max(layer, output),
    }
    gaps = {"gaps of the heap": (HEAP[platform] - 1.0) * sum(heap.values())}
    return {kind: int(number) for kind, number in (kept | heap | gaps).items() if number}


def cast_bytes(config: Config, state: Any, sizes: Mapping[str, int], item: int) -> int:
    """The layers' parameters in the dtype of the products: compilers cast them before the loop over layers."""
    if item == jnp.dtype(config.model.param_dtype).itemsize:
        return 0
    stacked = [leaf for leaf in leaves(state.params) if leaf.ndim > 2]
    return local_bytes(stacked, sizes) * item // jnp.dtype(config.model.param_dtype).itemsize


def saved_bytes(config: Config, sizes: Mapping[str, int], tokens: int, item: int, platform: str) -> float:
    """What the forward pass keeps of all layers for the backward pass."""
    model, tensor = config.model, sizes["tensor"]
    if model.execution.remat == "full":
        each = float(model.embed_dim)  # the input
    elif model.execution.remat == "dots":  # the input, and what products gave
        each = 2 * model.embed_dim + (projected(model) + hidden(model) * model.mlp_dim) / tensor
    else:
        each = 4 * model.embed_dim + (kept_of_heads(model) + (hidden(model) + 2) * model.mlp_dim) / tensor
    if model.execution.remat != "none":
        return model.num_layers * tokens * each * item
    weights = matrices(model) * item / tensor if sizes["fsdp"] > 1 else 0  # as they were gathered
    return model.num_layers * (tokens * each * item + kept_by_attention(config, sizes, platform) + weights)


def layer_bytes(config: Config, sizes: Mapping[str, int], tokens: int, item: int, platform: str) -> float:
    """What one layer has in its backward pass: recomputed activations, their gradients, weights and theirs."""
    model, tensor = config.model, sizes["tensor"]
    if model.execution.remat == "none":
        return tokens * (4 * model.embed_dim + (hidden(model) + 1) * model.mlp_dim / tensor) * item
    heads = (3 * model.num_heads + 2 * model.num_kv_heads) * model.head_dim / tensor
    residual = 1 if platform == "tpu" else 6  # arrays as wide as the residual stream; TPU compilers order them tighter
    activations = tokens * item * (residual * model.embed_dim + heads + (hidden(model) + 1) * model.mlp_dim / tensor)
    copies = 3 if platform == "tpu" else 2  # as gathered, gradients before they are reduced; on TPUs the next layer's
    weights = copies * matrices(model) * item / tensor
    kept_by_kernel = tokens * model.num_heads / tensor * LANES * 4 if platform == "tpu" else 0
    return activations + weights + kept_by_kernel


def output_bytes(config: Config, sizes: Mapping[str, int], tokens: int, item: int) -> float:
    """What the loss has at its fullest: the gathered output matrix, a chunk's logits (float32) and their gradients."""
    model, tensor = config.model, sizes["tensor"]
    words = min(config.train.vocab_chunk or model.vocab_size, model.vocab_size)
    gathered = model.vocab_size * model.embed_dim / tensor * item if sizes["fsdp"] > 1 else 0
    logits = tokens * words / tensor * (4 + item)
    return gathered + logits + tokens * model.embed_dim * (item + 4)


def hidden(model: AnyModelConfig) -> int:
    """Products that make the MLP's hidden layer."""
    return 2 if isinstance(model.mlp, Gated) else 1


def matrices(model: AnyModelConfig) -> int:
    """Elements of one layer's matrices."""
    heads = 2 * (model.num_heads + model.num_kv_heads) * model.head_dim
    return model.embed_dim * (heads + (hidden(model) + 1) * model.mlp_dim)


def projected(model: AnyModelConfig) -> int:
    """Elements a token of q, k and v."""
    return (model.num_heads + 2 * model.num_kv_heads) * model.head_dim


def kept_of_heads(model: AnyModelConfig) -> int:
    """Elements a token of what attention keeps without rematerialisation: q and k before and after their norm and
    rotation, v, and the heads' output."""
    steps = 1 + (model.attention.qk_norm is not None) + any(block.rotary is not None for block in model.pattern)
    return ((steps + 1) * model.num_heads + (steps + 1) * model.num_kv_heads) * model.head_dim


def kept_by_attention(config: Config, sizes: Mapping[str, int], platform: str) -> float:
    """Bytes of one layer's scores, twice, where the plain formula was asked for; on a CPU else the keys and values that
    each group of blocks copies for itself, forward and backward; 0 for a fused kernel."""
    model, tokens = config.model, micro_tokens(config, sizes)
    if model.execution.kernel == "dense":
        return 2 * tokens * config.loader.seq_len * model.num_heads / sizes["tensor"] * 4
    if platform != "cpu" or model.execution.remat != "none":
        return 0.0
    return 2 * tokens * (GROUPS + 1) / 2 * 2 * model.num_kv_heads * model.head_dim / sizes["tensor"] * 4
