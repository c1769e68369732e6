"""Cross-entropy of next tokens, in float32, with the vocabulary in chunks where its logits would not fit.

Shapes: B batch, T sequence, D embed, V vocabulary, C columns of one vocabulary chunk, n chunks.

The full logits of 4,096 tokens over 128,256 words are 2.1 GB in float32. With `vocab_chunk` only [B, T, C] of them
exist at a time: the forward pass keeps a running log-sum-exp over chunks, the backward pass makes each chunk's logits
again (one extra product with the output matrix). Without it they are made once and kept for the backward pass.
"""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from models.products import kernel_gradient
from models.rows import RowContext
from models.transformer import CausalLM

Batch = Mapping[str, Array]


def next_token_objective(
    model: CausalLM, batch: Batch, *, z_loss: float = 0.0, vocab_chunk: int | None = None
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Pretraining and tuning: sum over tokens of weight x (nats of the next token + z_loss x log(Z)^2).

    A sum and not a mean, because a mean of micro-batch means is wrong where their weights differ: the step divides
    once, by the total weight of the global batch. z_loss as in PaLM (Chowdhery et al. 2022, section 5).
    Returns (sum to differentiate, sums to report: `loss` in nats, without the z-loss, and `weight`).
    """
    rows = RowContext.of_batch(batch)
    hidden_BTD = model(batch["inputs"], batch["segment_ids"], batch["positions"], rows=rows)
    softcap = model.config.embedding.logit_softcap
    nll_BT, log_z_BT = token_losses(
        hidden_BTD, model.output_kernel(), batch["targets"], vocab_chunk=vocab_chunk, softcap=softcap
    )
    weights_BT = batch["loss_weights"]
    nll = jnp.sum(weights_BT * nll_BT)
    total = nll + z_loss * jnp.sum(weights_BT * log_z_BT**2) if z_loss else nll
    return total, {"loss": nll, "weight": jnp.sum(weights_BT)}


def next_token_nats(model: CausalLM, batch: Batch, *, vocab_chunk: int | None = None) -> Float[Array, ""]:
    """Nats of all targets of a batch, whatever their loss weight."""
    rows = RowContext.of_batch(batch)
    hidden_BTD = model(batch["inputs"], batch["segment_ids"], batch["positions"], rows=rows)
    softcap = model.config.embedding.logit_softcap
    nll_BT, _ = token_losses(
        hidden_BTD, model.output_kernel(), batch["targets"], vocab_chunk=vocab_chunk, softcap=softcap
    )
    return jnp.sum(jnp.where(batch["segment_ids"] > 0, nll_BT, 0.0))


def token_losses(
    hidden_BTD: Float[Array, "B T D"],
    kernel_DV: Float[Array, "D V"],
    targets_BT: Int[Array, "B T"],
    *,
    vocab_chunk: int | None = None,
    softcap: float | None = None,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Nats of every target and log(Z) of every position, both float32.

    Products run in the dtype of `hidden_BTD` and accumulate in float32. vocab_chunk: the most columns of the output
    matrix whose logits exist at a time; None for all of them. softcap: logits become softcap * tanh(logits / softcap).
    """
    num_words = kernel_DV.shape[1]
    chunks = 1 if vocab_chunk is None else -(-num_words // vocab_chunk)
    return _token_losses(hidden_BTD, kernel_DV, targets_BT, chunks, softcap)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _token_losses(
    hidden_BTD: Array, kernel_DV: Array, targets_BT: Array, chunks: int, softcap: float | None
) -> tuple[Array, Array]:
    return _forward(hidden_BTD, kernel_DV, targets_BT, chunks, softcap)[0]


def _forward(hidden_BTD: Array, kernel_DV: Array, targets_BT: Array, chunks: int, softcap: float | None) -> tuple:
    """((nll, log Z), residuals). With one chunk the logits are a residual, so that nothing is computed twice."""
    if chunks == 1:
        logits_BTV = _logits(hidden_BTD, kernel_DV, softcap)
        log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
        # A masked sum and not a gather: it stays on its device where the vocabulary is sharded, and fuses elsewhere.
        target_BT = jnp.where(_is_target(logits_BTV, targets_BT, 0, 1), logits_BTV, 0.0).sum(axis=-1)
        return (log_z_BT - target_BT, log_z_BT), (hidden_BTD, kernel_DV, targets_BT, log_z_BT, logits_BTV)

    def visit(carry: tuple, chunk: tuple) -> tuple:
        max_BT, sum_BT, target_BT = carry
        index, kernel_DC = chunk
        logits_BTC = _mask_padding(_logits(hidden_BTD, kernel_DC, softcap), index, chunks, kernel_DV.shape[1])
        new_max_BT = jnp.maximum(max_BT, logits_BTC.max(axis=-1))
        sum_BT = sum_BT * jnp.exp(max_BT - new_max_BT) + jnp.exp(logits_BTC - new_max_BT[..., None]).sum(axis=-1)
        target_BT += jnp.where(_is_target(logits_BTC, targets_BT, index, chunks), logits_BTC, 0.0).sum(axis=-1)
        return (new_max_BT, sum_BT, target_BT), None

    zeros_BT = jnp.zeros(targets_BT.shape, jnp.float32)
    start = (jnp.full_like(zeros_BT, jnp.finfo(jnp.float32).min), zeros_BT, zeros_BT)
    (max_BT, sum_BT, target_BT), _ = jax.lax.scan(visit, start, (jnp.arange(chunks), _split(kernel_DV, chunks)))
    log_z_BT = max_BT + jnp.log(sum_BT)
    return (log_z_BT - target_BT, log_z_BT), (hidden_BTD, kernel_DV, targets_BT, log_z_BT, None)


def _backward(chunks: int, softcap: float | None, residuals: tuple, gradients: tuple) -> tuple:
    """Gradients of hidden and kernel: d logits = (g_nll + g_logz) softmax - g_nll onehot(target)."""
    hidden_BTD, kernel_DV, targets_BT, log_z_BT, logits_BTV = residuals
    nll_grad_BT, both_grad_BT = gradients[0], gradients[0] + gradients[1]

    def of_logits(logits_BTC: Array, index: Array | int) -> Array:
        softmax_BTC = jnp.exp(logits_BTC - log_z_BT[..., None])
        hit_BTC = _is_target(logits_BTC, targets_BT, index, chunks)
        grad_BTC = both_grad_BT[..., None] * softmax_BTC - jnp.where(hit_BTC, nll_grad_BT[..., None], 0.0)
        if softcap is not None:  # through tanh; the clip is for padding, whose logits are the lowest float
            grad_BTC *= 1.0 - jnp.clip(logits_BTC / softcap, -1.0, 1.0) ** 2
        return grad_BTC.astype(hidden_BTD.dtype)

    def products(grad_BTC: Array, kernel_DC: Array) -> tuple[Array, Array]:
        float32 = {"preferred_element_type": jnp.float32}
        hidden_grad_BTD = jnp.einsum("btc,dc->btd", grad_BTC, kernel_DC.astype(hidden_BTD.dtype), **float32)
        # Each device keeps its part of the sum, so that no chunk of the matrix's gradient is ever whole.
        return hidden_grad_BTD, kernel_gradient(hidden_BTD, grad_BTC, ("embed", "vocab"), kernel_DV.dtype)

    if chunks == 1:
        hidden_grad_BTD, kernel_grad_DV = products(of_logits(logits_BTV, 0), kernel_DV)
    else:

        def visit(total_BTD: Array, chunk: tuple) -> tuple[Array, Array]:
            index, kernel_DC = chunk
            logits_BTC = _mask_padding(_logits(hidden_BTD, kernel_DC, softcap), index, chunks, kernel_DV.shape[1])
            hidden_grad_BTD, kernel_grad_DC = products(of_logits(logits_BTC, index), kernel_DC)
            return total_BTD + hidden_grad_BTD, kernel_grad_DC

        start_BTD = jnp.zeros(hidden_BTD.shape, jnp.float32)
        chunked = (jnp.arange(chunks), _split(kernel_DV, chunks))
        hidden_grad_BTD, kernel_grads_nDC = jax.lax.scan(visit, start_BTD, chunked)
        kernel_grad_DV = jnp.moveaxis(kernel_grads_nDC, 0, 2).reshape(kernel_DV.shape[0], -1)[:, : kernel_DV.shape[1]]
    return hidden_grad_BTD.astype(hidden_BTD.dtype), kernel_grad_DV.astype(kernel_DV.dtype), None


_token_losses.defvjp(_forward, _backward)


def _logits(hidden_BTD: Array, kernel_DC: Array, softcap: float | None) -> Array:
    kernel_DC = kernel_DC.astype(hidden_BTD.dtype)
    logits_BTC = jnp.einsum("btd,dc->btc", hidden_BTD, kernel_DC, preferred_element_type=jnp.float32)
    return logits_BTC if softcap is None else softcap * jnp.tanh(logits_BTC / softcap)


def _split(kernel_DV: Array, chunks: int) -> Array:
    """[n, D, C]: chunk i holds the words i, i + n, i + 2n, ...

    Strided, so that a vocabulary that is sharded over the tensor axis stays sharded inside every chunk; blocks of
    neighbouring words would put a whole chunk on one device.
    """
    columns = -(-kernel_DV.shape[1] // chunks)
    padded_DV = jnp.pad(kernel_DV, ((0, 0), (0, columns * chunks - kernel_DV.shape[1])))
    return jnp.moveaxis(padded_DV.reshape(kernel_DV.shape[0], columns, chunks), 2, 0)


def _is_target(logits_BTC: Array, targets_BT: Array, index: Array | int, chunks: int) -> Array:
    """Where the columns of chunk `index` are the targets."""
    words_C = jnp.arange(logits_BTC.shape[-1]) * chunks + index
    return words_C == targets_BT[..., None]


def _mask_padding(logits_BTC: Array, index: Array, chunks: int, num_words: int) -> Array:
    """Columns past the vocabulary's end get no probability."""
    words_C = jnp.arange(logits_BTC.shape[-1]) * chunks + index
    return jnp.where(words_C < num_words, logits_BTC, jnp.finfo(jnp.float32).min)
