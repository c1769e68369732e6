"""The compiled side of models.seq2seq_decode: reading sources, steps of greedy and beam search, growing the cache.

Beam search is that of transformers' `_beam_search` (5.x), with its length penalty and its rule of when nothing better
can follow.

Shapes: B sentences, K beams, J continuations (two a beam), S source tokens, C cache slots, V vocabulary.
"""

from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.decode_rows import few_row_options
from models.seq2seq import Seq2SeqLM

ROW_STEP = 2  # by how much a batch shrinks at once when its sentences end
NEVER = -1.0e9  # a score that no sequence reaches; the reference's own value, since it is added and compared


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """num_beams: 1 is greedy. max_length: tokens of a target, the start token included.

    length_penalty: a finished sequence's log-probability is divided by its length to this power. batch_size: sentences
    at a time. banned: ids that never come out. forced_eos: whether a target of full length must end in EOS.
    renormalize: whether the probabilities that are left after banning are made to sum to one.
    """

    num_beams: int = 1
    max_length: int = 512
    length_penalty: float = 1.0
    early_stopping: bool = False
    banned: tuple[int, ...] = ()
    forced_eos: bool = True
    renormalize: bool = False
    batch_size: int = 48

    def __post_init__(self) -> None:
        if self.num_beams < 1 or self.batch_size < 1 or self.max_length < 2:
            raise ValueError(
                f"num_beams={self.num_beams}, batch_size={self.batch_size}, max_length={self.max_length}: "
                "expected at least 1, 1 and 2"
            )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Beams:
    """What a search carries from step to step.

    keys, values: a layer's cache each, [B, K, C, N, H]. tokens_BKC, best_BKC: running and finished sequences, the start
    token first. running_BK, best_score_BK: their scores. finished_BK: which of `best` are real. open_B: whether
    something better may follow. length: tokens so far.
    """

    keys: Any
    values: Any
    tokens_BKC: Any
    running_BK: Any
    best_BKC: Any
    best_score_BK: Any
    finished_BK: Any
    open_B: Any
    length: Any


@partial(jax.jit, static_argnames=("graph",))
def read_sources(graph: Any, state: Any, source_BS: jax.Array, mask_BS: jax.Array) -> Any:
    """Keys and values of the encoded sources for every decoder layer."""
    model = nnx.merge(graph, state)
    return model.cross_cache(model.encode(source_BS, mask_BS))


@partial(jax.jit, static_argnames=("graph", "num_beams", "slots"))
def empty_beams(graph: Any, state: Any, cross: Any, num_beams: int, slots: int) -> Beams:
    """The state before the first token: only the first beam counts, so that not all of them begin alike."""
    config = nnx.merge(graph, state).config
    rows, _, heads, head_dim = cross[0][0].shape
    shape = (rows, num_beams, slots, heads, head_dim)
    empty = [jnp.zeros(shape, config.dtype) for _ in cross]
    tokens_BKC = jnp.full((rows, num_beams, slots), config.pad_id, jnp.int32).at[:, :, 0].set(config.start_id)
    scores_BK = jnp.zeros((rows, num_beams), jnp.float32)
    return Beams(
        keys=empty,
        values=empty,
        tokens_BKC=tokens_BKC,
        running_BK=scores_BK.at[:, 1:].set(NEVER),
        best_BKC=tokens_BKC,
        best_score_BK=scores_BK + NEVER,
        finished_BK=jnp.zeros((rows, num_beams), bool),
        open_B=jnp.ones((rows,), bool),
        length=jnp.int32(1),
    )


@partial(jax.jit, static_argnames=("slots",))
def regrow(cross: Any, mask_BS: jax.Array, beams: Beams, rows_B: jax.Array, slots: int) -> tuple[Any, jax.Array, Beams]:
    """The chosen rows alone, with a longer cache."""
    more = slots - beams.tokens_BKC.shape[2]

    def longer(leaf: jax.Array) -> jax.Array:
        return jnp.pad(leaf[rows_B], [(0, more if dim == 2 else 0) for dim in range(leaf.ndim)])

    grown = Beams(
        keys=[longer(leaf) for leaf in beams.keys],
        values=[longer(leaf) for leaf in beams.values],
        tokens_BKC=longer(beams.tokens_BKC),
        running_BK=beams.running_BK[rows_B],
        best_BKC=longer(beams.best_BKC),
        best_score_BK=beams.best_score_BK[rows_B],
        finished_BK=beams.finished_BK[rows_B],
        open_B=beams.open_B[rows_B],
        length=beams.length,
    )
    return jax.tree.map(lambda leaf: leaf[rows_B], cross), mask_BS[rows_B], grown


@cache
def compiled_search() -> Any:
    """`search`, compiled with the options of this backend for products of a few rows; `beams` is donated."""
    options = few_row_options()
    return jax.jit(search, static_argnames=("graph", "config"), donate_argnames=("beams",), compiler_options=options)


def search(
    graph: Any,
    state: Any,
    kernel_DV: jax.Array,
    cross: Any,
    mask_BS: jax.Array,
    beams: Beams,
    config: SearchConfig,
) -> Beams:
    """Steps until the cache is full, or so few sentences are left that a smaller batch holds them.

    kernel_DV: `Seq2SeqLM.output_kernel`, laid out once for all steps.
    """
    model = nnx.merge(graph, state)
    rows, _, slots = beams.tokens_BKC.shape
    advance = greedy_step if config.num_beams == 1 else beam_step

    def more(beams: Beams) -> jax.Array:
        return (beams.length < slots) & (jnp.sum(beams.open_B) > rows // ROW_STEP)

    def step(beams: Beams) -> Beams:
        hidden_BKD, beams = next_hidden(model, cross, mask_BS, beams)
        logits_BKV = model.logits(hidden_BKD, kernel_DV)
        if config.num_beams > 1:
            logits_BKV = jax.nn.log_softmax(logits_BKV, axis=-1)
        for token in config.banned:
            logits_BKV = logits_BKV.at[:, :, token].set(-jnp.inf)
        if config.forced_eos:
            only_eos = jnp.arange(logits_BKV.shape[-1]) == model.config.eos_id
            last = beams.length == config.max_length - 1
            logits_BKV = jnp.where(last, jnp.where(only_eos, 0.0, -jnp.inf), logits_BKV)
        if config.renormalize:
            logits_BKV = jax.nn.log_softmax(logits_BKV, axis=-1)
        return advance(model.config.eos_id, beams, logits_BKV, config)

    return jax.lax.while_loop(more, step, beams)


def next_hidden(model: Seq2SeqLM, cross: Any, mask_BS: jax.Array, beams: Beams) -> tuple[jax.Array, Beams]:
    """Hidden states [B, K, D] of each beam's newest token, and the caches with it.

    The beams of a sentence are the queries of one attention to its source, which is kept once a sentence.
    """
    place = beams.length - 1
    rows, num_beams, slots = beams.tokens_BKC.shape
    token_BK = jax.lax.dynamic_index_in_dim(beams.tokens_BKC, place, axis=2, keepdims=False)
    x_BKD = model.embed(token_BK, jnp.broadcast_to(place, token_BK.shape))
    seen_BKC = jnp.broadcast_to(jnp.arange(slots) <= place, (rows * num_beams, 1, slots))
    mask_BKS = jnp.broadcast_to(mask_BS[:, None, :], (rows, num_beams, mask_BS.shape[1]))
    keys, values = [], []
    for layer, cross_kv, k_BKCNH, v_BKCNH in zip(model.decoder, cross, beams.keys, beams.values):
        new = layer.attention.keys_values(x_BKD)
        k_BKCNH, v_BKCNH = (
            jax.lax.dynamic_update_slice_in_dim(old, fresh[:, :, None].astype(old.dtype), place, axis=2)
            for old, fresh in zip((k_BKCNH, v_BKCNH), new)
        )
        keys.append(k_BKCNH)
        values.append(v_BKCNH)
        flat = (rows * num_beams, slots, *k_BKCNH.shape[3:])
        y_BKD = layer.attention(
            x_BKD.reshape(rows * num_beams, 1, -1), (k_BKCNH.reshape(flat), v_BKCNH.reshape(flat)), seen_BKC
        ).reshape(x_BKD.shape)
        x_BKD = layer.attention_norm(x_BKD + y_BKD)
        assert layer.cross is not None and layer.cross_norm is not None
        x_BKD = layer.cross_norm(x_BKD + layer.cross(x_BKD, cross_kv, mask_BKS))
        x_BKD = layer.after_attention(x_BKD)
    return x_BKD, replace(beams, keys=keys, values=values)


def greedy_step(eos: int, beams: Beams, logits_BKV: jax.Array, config: SearchConfig) -> Beams:
    """The likeliest token of every open sentence."""
    token_B = jnp.argmax(logits_BKV[:, 0], axis=-1).astype(jnp.int32)
    token_B = jnp.where(beams.open_B, token_B, eos)
    tokens_BKC = jax.lax.dynamic_update_slice_in_dim(beams.tokens_BKC, token_B[:, None, None], beams.length, axis=2)
    open_B = beams.open_B & (token_B != eos)
    return replace(beams, tokens_BKC=tokens_BKC, best_BKC=tokens_BKC, open_B=open_B, length=beams.length + 1)


def beam_step(eos: int, beams: Beams, log_probs_BKV: jax.Array, config: SearchConfig) -> Beams:
    """One step of beam search. Twice as many continuations as beams are kept, since as many may end here."""
    rows, num_beams, vocabulary = log_probs_BKV.shape
    total_BKV = log_probs_BKV + beams.running_BK[:, :, None]
    scores_BJ, flat_BJ = jax.lax.top_k(total_BKV.reshape(rows, -1), 2 * num_beams)
    beam_BJ, token_BJ = flat_BJ // vocabulary, (flat_BJ % vocabulary).astype(jnp.int32)
    tokens_BJC = jnp.take_along_axis(beams.tokens_BKC, beam_BJ[:, :, None], axis=1)
    tokens_BJC = jax.lax.dynamic_update_slice_in_dim(tokens_BJC, token_BJ[:, :, None], beams.length, axis=2)
    ends_BJ = (token_BJ == eos) | (beams.length + 1 >= config.max_length)

    # the beams that go on
    running_BJ = scores_BJ + jnp.where(ends_BJ, NEVER, 0.0)
    running_BK, next_BK = jax.lax.top_k(running_BJ, num_beams)
    from_BK = jnp.take_along_axis(beam_BJ, next_BK, axis=1)
    tokens_BKC = jnp.take_along_axis(tokens_BJC, next_BK[:, :, None], axis=1)
    moved = [
        [jnp.take_along_axis(leaf, from_BK[:, :, None, None, None], axis=1) for leaf in leaves]
        for leaves in (beams.keys, beams.values)
    ]

    # the sequences that end, among the best of those that ended before
    counts_BJ = ends_BJ & (jnp.arange(2 * num_beams) < num_beams)
    length = (beams.length + 1 - 1).astype(jnp.float32)  # new tokens: the start token is the prompt
    ended_BJ = scores_BJ / length**config.length_penalty
    full_B = jnp.all(beams.finished_BK, axis=1) & config.early_stopping
    ended_BJ += jnp.where(full_B, NEVER, 0.0)[:, None] + jnp.where(beams.open_B, 0.0, NEVER)[:, None]
    ended_BJ += jnp.where(counts_BJ, 0.0, NEVER)
    merged = jnp.concatenate([beams.best_score_BK, ended_BJ], axis=1)
    best_score_BK, best_BK = jax.lax.top_k(merged, num_beams)
    best_BKC = jnp.take_along_axis(jnp.concatenate([beams.best_BKC, tokens_BJC], axis=1), best_BK[:, :, None], axis=1)
    finished_BK = jnp.take_along_axis(jnp.concatenate([beams.finished_BK, counts_BJ], axis=1), best_BK, axis=1)

    # can the best running beam, at its present length, still beat the worst finished sequence?
    possible_B1 = running_BK[:, :1] / length**config.length_penalty
    worst_BK = jnp.where(finished_BK, jnp.min(best_score_BK, axis=1, keepdims=True), NEVER)
    open_B = beams.open_B & jnp.any(possible_B1 > worst_BK, axis=1)
    if config.early_stopping:
        open_B &= ~jnp.all(finished_BK, axis=1)
    return Beams(
        moved[0], moved[1], tokens_BKC, running_BK, best_BKC, best_score_BK, finished_BK, open_B, beams.length + 1
    )
