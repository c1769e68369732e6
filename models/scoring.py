"""How likely a model finds texts: nats a document, packed by length, long documents in sliding windows.

    scorer = Scorer(model, tokenizer)
    nats, tokens = scorer.score(["The cat sat on the mat."])

Documents are cut into pieces of at most `window` tokens; the pieces of like length share rows as segments, so no matrix
product is spent on padding. Logits are made a few hundred tokens at a time and never kept.

Shapes: B rows, T row length, D embed, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.adapters import check_numbers, count_adapters
from models.rows import RowContext
from models.transformer import CausalLM

SHORTEST_ROW = 128  # tokens; rows are this times a power of two, so that few shapes are compiled
LOGIT_TOKENS = 512  # tokens whose logits are in memory at once, [512, V] float32


@runtime_checkable
class DocumentTokenizer(Protocol):
    """What scoring needs of a tokenizer; both put BOS first where the model expects it."""

    def encode_document(self, text: str) -> list[int]:
        """Ids of a document, as training had them."""
        ...

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a prompt, whose special tokens are found in the text."""
        ...


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """window: most tokens that a prediction can see, itself included (never more than the model's context).

    stride: tokens between the starts of two windows of a long document. Every token is scored once; after the first
    window each has at least window - stride tokens before it. batch_tokens: tokens of one forward pass.
    """

    window: int = 1024
    stride: int = 512
    batch_tokens: int = 4096

    def __post_init__(self) -> None:
        if not 1 <= self.stride < self.window:
            raise ValueError(f"stride={self.stride} must be at least 1 and below window={self.window}")
        if self.batch_tokens < 1:
            raise ValueError(f"batch_tokens={self.batch_tokens}: expected at least 1")


@dataclass(frozen=True)
class Piece:
    """Tokens start..end of a document; those from `first_target` on are scored here."""

    document: int
    start: int
    end: int
    first_target: int

    @property
    def length(self) -> int:
        """Inputs it takes in a row: the last token is a target only."""
        return self.end - self.start - 1


@dataclass(frozen=True)
class TokenScores:
    """Of every token of a document after the first: -log p, nats, float32; whether no other token is likelier."""

    nats: np.ndarray
    likeliest: np.ndarray


def check_ids(ids: Sequence[int], vocabulary: int, what: str) -> None:
    """ValueError where an id is none of the vocabulary's: on a device it would read another row, and say nothing."""
    if wrong := [token for token in (min(ids, default=0), max(ids, default=0)) if not 0 <= token < vocabulary]:
        raise ValueError(f"{what} has id {wrong[0]}, the vocabulary {vocabulary}: another model's tokenizer?")


def cut_pieces(lengths: Sequence[int], config: ScoringConfig) -> list[Piece]:
    """Windows over every document. Each token but a document's first is the target of exactly one piece."""
    pieces = []
    for document, length in enumerate(lengths):
        start, scored = 0, 1
        while scored < length:
            end = min(start + config.window, length)
            pieces.append(Piece(document, start, end, scored))
            start, scored = start + config.stride, end
    return pieces


def pack_rows(pieces: Sequence[Piece], longest_row: int) -> dict[int, list[list[Piece]]]:
    """Rows by row length. A piece goes to the shortest length that holds it, there to the first row with room."""
    by_length: dict[int, list[Piece]] = {}
    for piece in pieces:
        size = SHORTEST_ROW
        while size < piece.length:
            size *= 2
        by_length.setdefault(min(size, max(longest_row, piece.length)), []).append(piece)
    packed: dict[int, list[list[Piece]]] = {}
    for size, group in sorted(by_length.items()):
        rows: list[list[Piece]] = []
        room: list[int] = []
        for piece in sorted(group, key=lambda piece: -piece.length):
            place = next((i for i, left in enumerate(room) if left >= piece.length), None)
            if place is None:
                rows.append([])
                room.append(size)
                place = len(rows) - 1
            rows[place].append(piece)
            room[place] -= piece.length
        packed[size] = rows
    return packed


@partial(jax.jit, static_argnames=("graph",))
def row_scores(
    graph: Any,
    state: Any,
    inputs_BT: jax.Array,
    targets_BT: jax.Array,
    segment_ids_BT: jax.Array,
    positions_BT: jax.Array,
    adapter_B: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(-log p of every target, nats, float32; whether it is the likeliest token), [B, T]; padding means nothing."""
    model = nnx.merge(graph, state)
    rows = None if adapter_B is None else RowContext(adapter_ids_B=adapter_B)
    hidden_BTD = model(inputs_BT, segment_ids_BT, positions_BT, rows=rows)
    flat = hidden_BTD.shape[0] * hidden_BTD.shape[1]
    count = math.gcd(flat, LOGIT_TOKENS)

    def scores(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        hidden_CD, targets_C = part
        logits_CV = model.logits(hidden_CD)
        chosen_C = jnp.take_along_axis(logits_CV, targets_C[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(logits_CV, axis=1) - chosen_C, chosen_C >= jnp.max(logits_CV, axis=1)

    parts = (hidden_BTD.reshape(flat // count, count, -1), targets_BT.reshape(flat // count, count))
    nats, likeliest = jax.lax.map(scores, parts)
    return nats.reshape(targets_BT.shape), likeliest.reshape(targets_BT.shape)


class Scorer:
    """A model and its tokenizer as the `score(texts) -> nats, tokens` that data recipes take.

    A document's first token is predicted only where the tokenizer puts BOS before it. adapter: number of the adapter
    that acts on documents for which none is named, -1 for the base alone; a model without adapters has number 0 only.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: DocumentTokenizer | None = None,
        config: ScoringConfig | None = None,
        *,
        adapter: int = 0,
    ):
        self.adapter, self.num_adapters = adapter, count_adapters(model)
        check_numbers([adapter], self.num_adapters)
        config = config or ScoringConfig()
        context = model.config.embedding.max_positions
        if context is not None and context < config.window:
            config = dataclasses.replace(config, window=context, stride=min(config.stride, max(1, context // 2)))
        self.config, self.tokenizer, self.vocab_size = config, tokenizer, model.config.vocab_size
        model = nnx.clone(model)
        # one layer's code, looped over: compiles in a tenth of the time, and long rows hide the slicing of weights
        model.config = dataclasses.replace(
            model.config, execution=dataclasses.replace(model.config.execution, scan_unroll=1)
        )
        self._graph, self._state = nnx.split(model)

    def score(self, texts: Sequence[str], adapters: Sequence[int] | None = None) -> tuple[list[float], list[int]]:
        """(nats, scored tokens) of every text. adapters: number of the adapter that acts on each."""
        if self.tokenizer is None:
            raise ValueError("this scorer has no tokenizer: give it one, or score ids")
        return self.score_ids([self.tokenizer.encode_document(text) for text in texts], adapters)

    def score_ids(
        self, documents: Sequence[Sequence[int]], adapters: Sequence[int] | None = None
    ) -> tuple[list[float], list[int]]:
        """(nats, scored tokens) of every document of ids."""
        nats = [scores.nats for scores in self.token_scores(documents, adapters)]
        return [float(np.sum(values, dtype=np.float64)) for values in nats], [len(values) for values in nats]

    def token_nats(self, documents: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """-log p of every token after the first of each document, nats."""
        return [scores.nats for scores in self.token_scores(documents)]

    def token_scores(
        self, documents: Sequence[Sequence[int]], adapters: Sequence[int] | None = None
    ) -> list[TokenScores]:
        """The scores of every token after the first of each document.

        Errors: ValueError for an id past the vocabulary, or an adapter that is not there.
        """
        adapters = [self.adapter] * len(documents) if adapters is None else adapters
        check_numbers(adapters, self.num_adapters)
        for number, document in enumerate(documents):
            check_ids(document, self.vocab_size, f"document {number}")
        sizes = [max(0, len(document) - 1) for document in documents]
        out = [TokenScores(np.zeros(size, np.float32), np.zeros(size, bool)) for size in sizes]
        pieces = cut_pieces([len(document) for document in documents], self.config)
        by_size: dict[int, list[list[Piece]]] = {}
        for number in sorted(set(adapters)):  # a row has one adapter
            theirs = [piece for piece in pieces if adapters[piece.document] == number]
            for size, rows in pack_rows(theirs, self.config.window).items():
                by_size.setdefault(size, []).extend(rows)
        for size, rows in sorted(by_size.items()):
            per_batch = max(1, self.config.batch_tokens // size)
            for start in range(0, len(rows), per_batch):
                self._run(rows[start : start + per_batch], size, documents, adapters, out)
        return out

    def _run(
        self,
        rows: Sequence[Sequence[Piece]],
        size: int,
        documents: Sequence[Sequence[int]],
        adapters: Sequence[int],
        out: list[TokenScores],
    ) -> None:
        """One forward pass; the number of rows is rounded up to a power of two, to bound compilations."""
        count = 1 << (len(rows) - 1).bit_length()
        inputs, targets, segments, positions = (np.zeros((count, size), np.int32) for _ in range(4))
        places = []
        for row, pieces in enumerate(rows):
            at = 0
            for number, piece in enumerate(pieces, start=1):
                ids = np.asarray(documents[piece.document][piece.start : piece.end], np.int32)
                span = slice(at, at + piece.length)
                inputs[row, span], targets[row, span] = ids[:-1], ids[1:]
                segments[row, span], positions[row, span] = number, np.arange(piece.length)
                places.append((row, at, piece))
                at += piece.length
        used = np.zeros(count, np.int32)
        used[: len(rows)] = [adapters[pieces[0].document] for pieces in rows]
        chosen = jnp.asarray(used) if self.num_adapters else None
        found = row_scores(self._graph, self._state, inputs, targets, segments, positions, chosen)
        nats, likeliest = map(np.asarray, found)
        for row, at, piece in places:
            skip = piece.first_target - piece.start - 1  # targets that an earlier window has scored
            there, here = slice(piece.first_target - 1, piece.end - 1), slice(at + skip, at + piece.length)
            out[piece.document].nats[there] = nats[row, here]
            out[piece.document].likeliest[there] = likeliest[row, here]
