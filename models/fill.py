"""A masked language model as a filler of gaps: whole words, drawn from the likeliest, never the word that was there.

    MaskedFiller(checkpoint="hf:google-bert/bert-base-cased").build().fill([masked])

Every word to replace becomes one mask; all masks of a text are filled at once. Only pieces that are words by
themselves are offered. Each draw depends on the text's seed and the mask's number alone. Long texts go in windows.

Shapes: R texts or windows, T tokens, M masks of a window, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import Tokenizer

from models.checkpoints.bert import load_bert
from models.checkpoints.encoder_run import load_encoder_run
from models.checkpoints.listed import files_key
from models.checkpoints.location import read_object, resolve
from models.decode import bucket
from models.encoder import EncoderLM

MASKS = ("[MASK]", "<mask>")  # of BERT and of RoBERTa
NOT_IN_KEY = {"in_key": False}
WIDTH = 32  # tokens; long windows are padded to a multiple
MASK_BUCKET = 8  # masks of a window are padded to a multiple, so that few shapes are compiled


@runtime_checkable
class Masked(Protocol):
    """A text, the words to replace as (start, end) in characters, and a seed."""

    @property
    def text(self) -> str:
        """The text."""
        ...

    @property
    def spans(self) -> Sequence[tuple[int, int]]:
        """(start, end) of each word to replace, in characters, in order."""
        ...

    @property
    def seed(self) -> int:
        """What the draws depend on."""
        ...


@dataclass(frozen=True)
class Window:
    """A stretch of one text as ids with masks in it. masks: (place in ids, number of the span)."""

    text: int
    ids: list[int]
    masks: list[tuple[int, int]]


class Filler:
    """A model with its tokenizer. top_k: how many words a draw is made from; batch_tokens: of one forward pass."""

    def __init__(self, model: EncoderLM, tokenizer: Tokenizer, *, mask_id: int, top_k: int, batch_tokens: int):
        self.graph, self.state = nnx.split(model)
        self.tokenizer, self.mask_id, self.top_k, self.batch_tokens = tokenizer, mask_id, top_k, batch_tokens
        self.longest = model.config.longest
        self.front, self.back = special_ids(tokenizer)
        pieces = [tokenizer.id_to_token(number) or "" for number in range(model.config.vocab_size)]
        words = [word_of(tokenizer, number, piece) for number, piece in enumerate(pieces)]
        self.words = words
        self.allowed_V = jnp.asarray([bool(word) for word in words])
        self.lower: dict[str, list[int]] = {}
        for number, word in enumerate(words):
            if word:
                self.lower.setdefault(word.lower(), []).append(number)

    def fill(self, masked: Sequence[Masked]) -> list[list[str | None]]:
        """Another word for every span; None where no other word is left to offer."""
        windows = [window for number, item in enumerate(masked) for window in self.windows(number, item)]
        out: list[list[str | None]] = [[None] * len(item.spans) for item in masked]
        order = sorted(range(len(windows)), key=lambda i: (len(windows[i].ids), i))
        start = 0  # rows and width follow from a window's own length, never from its neighbours'
        while start < len(order):
            width = width_of(len(windows[order[start]].ids))
            rows = max(1, self.batch_tokens // width)
            chosen = [windows[i] for i in order[start : start + rows] if width_of(len(windows[i].ids)) == width]
            start += len(chosen)
            self._fill_batch(chosen, masked, out, width, rows)
        return out

    def windows(self, number: int, item: Masked) -> list[Window]:
        """A text with one mask in place of each span's tokens, cut where it is longer than the model reads.

        The text is split into tokens first, so that what stands beside a gap is split as it was in training.
        """
        encoded = self.tokenizer.encode(item.text, add_special_tokens=False)
        room = self.longest - len(self.front) - len(self.back)
        windows, ids = [], list(self.front)
        masks: list[tuple[int, int]] = []
        spans = iter(enumerate(item.spans))
        place, (start, stop) = next(spans, (0, (len(item.text) + 1, len(item.text) + 1)))
        open_span = None
        for token, (begin, end) in zip(encoded.ids, encoded.offsets):
            while begin >= stop:
                place, (start, stop) = next(spans, (0, (len(item.text) + 1, len(item.text) + 1)))
            inside = end > start and begin < stop
            if inside and open_span == place:
                continue  # a further token of a word that has its mask
            if end == start and item.text[begin:end] == " ":
                continue  # the space that the words on offer bring along
            open_span = place if inside else None
            if len(ids) - len(self.front) >= room:
                windows.append(Window(number, [*ids, *self.back], masks))
                ids, masks = list(self.front), []
            if inside:
                masks.append((len(ids), place))
            ids.append(self.mask_id if inside else token)
        windows.append(Window(number, [*ids, *self.back], masks))
        return [window for window in windows if window.masks]

    def _fill_batch(
        self, windows: list[Window], masked: Sequence[Masked], out: list[list[str | None]], width: int, rows: int
    ) -> None:
        most = -(-max(len(window.masks) for window in windows) // MASK_BUCKET) * MASK_BUCKET
        ids, segments = np.zeros((rows, width), np.int32), np.zeros((rows, width), np.int32)
        places, seeds = np.zeros((rows, most), np.int32), np.zeros((rows, most, 2), np.uint32)
        banned = np.full((rows, most, 8), -1, np.int32)  # spellings of the word that was there
        for row, window in enumerate(windows):
            ids[row, : len(window.ids)], segments[row, : len(window.ids)] = window.ids, 1
            item = masked[window.text]
            for column, (place, span) in enumerate(window.masks):
                places[row, column] = place
                seeds[row, column] = (item.seed & 0xFFFFFFFF, (item.seed >> 32) ^ (span * 0x9E3779B1 & 0xFFFFFFFF))
                start, stop = item.spans[span]
                same = self.lower.get(item.text[start:stop].lower(), [])[:8]
                banned[row, column, : len(same)] = same
        drawn, good = draw_words(
            self.graph, self.state, ids, segments, places, seeds, banned, self.allowed_V, self.top_k
        )
        drawn, good = np.asarray(drawn), np.asarray(good)
        for row, window in enumerate(windows):
            item = masked[window.text]
            for column, (_, span) in enumerate(window.masks):
                start, stop = item.spans[span]
                if good[row, column]:
                    word = self.words[drawn[row, column]]
                    out[window.text][span] = word.capitalize() if item.text[start].isupper() else word


@partial(jax.jit, static_argnames=("graph", "top_k"))
def draw_words(
    graph: Any,
    state: Any,
    ids_RT: jax.Array,
    segments_RT: jax.Array,
    places_RM: jax.Array,
    seeds_RM2: jax.Array,
    banned_RMK: jax.Array,
    allowed_V: jax.Array,
    top_k: int,
) -> tuple[jax.Array, jax.Array]:
    """A word for each mask and whether there was one: logits are made for the masks alone."""
    model = nnx.merge(graph, state)
    positions_RT = jnp.broadcast_to(jnp.arange(ids_RT.shape[1]), ids_RT.shape)
    hidden_RTD = model(ids_RT, segments_RT, positions_RT * (segments_RT > 0))
    hidden_RMD = jnp.take_along_axis(hidden_RTD, places_RM[:, :, None], axis=1)
    logits_RMV = jnp.where(allowed_V, model.logits(hidden_RMD), -jnp.inf)
    # spellings of the word that was there are taken out of the best few: cheaper than out of the whole vocabulary
    best_RMJ, words_RMJ = jax.lax.top_k(logits_RMV, min(top_k + banned_RMK.shape[-1], logits_RMV.shape[-1]))
    same_RMJ = jnp.any(words_RMJ[..., None] == banned_RMK[:, :, None, :], axis=-1)
    best_RMK, places_RMK = jax.lax.top_k(jnp.where(same_RMJ, -jnp.inf, best_RMJ), min(top_k, logits_RMV.shape[-1]))
    words_RMK = jnp.take_along_axis(words_RMJ, places_RMK, axis=-1)

    def draw(seed_2: jax.Array, scores_K: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed_2[0]), seed_2[1])
        return jax.random.categorical(key, scores_K)

    chosen_RM = jax.vmap(jax.vmap(draw))(seeds_RM2, best_RMK)
    return jnp.take_along_axis(words_RMK, chosen_RM[:, :, None], axis=-1)[:, :, 0], jnp.isfinite(best_RMK[:, :, 0])


def width_of(length: int) -> int:
    """Tokens that a window of this length is padded to: powers of two, then multiples of `WIDTH`."""
    return bucket(length) if length <= WIDTH else -(-length // WIDTH) * WIDTH


def special_ids(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text ([CLS] and [SEP], or nothing)."""
    around = tokenizer.encode("a", add_special_tokens=True).ids
    inner = tokenizer.encode("a", add_special_tokens=False).ids
    start = next(i for i in range(len(around) - len(inner) + 1) if around[i : i + len(inner)] == inner)
    return around[:start], around[start + len(inner) :]


def word_of(tokenizer: Tokenizer, number: int, piece: str) -> str | None:
    """The word that a piece is by itself, in small letters and two of them at the least; None for all else.

    WordPiece marks what continues a word ("##ing"); byte-level BPE and SentencePiece mark what begins one: "Ġ", "▁", or
    the space itself.
    """
    marked = piece[:1] in ("Ġ", "▁", " ")
    text = piece[1:] if marked else piece
    if len(text) < 2 or not text.isalpha() or not text.islower():
        return None
    if not marked and not _wordpiece(tokenizer):
        return None
    return text


def _wordpiece(tokenizer: Tokenizer) -> bool:
    return type(tokenizer.model).__name__ == "WordPiece"


@dataclass(frozen=True, kw_only=True)
class MaskedFiller:
    """What makes a `fill(masked) -> words` of a BERT or RoBERTa folder with its tokenizer.json, or of a run's folder.

    top_k: words that a draw is made from, by their probabilities. batch_tokens: of one forward pass; more on
    an accelerator.
    """

    checkpoint: str
    top_k: int = 10
    batch_tokens: int = field(default=1024, metadata=NOT_IN_KEY)

    def inputs_key(self) -> Any:
        """The folder's files; of a run, those of its checkpoints."""
        return files_key(self.checkpoint)

    def build(self) -> Filler:
        """Load the model; ValueError where it is not whole, or its tokenizer has no mask."""
        where = resolve(self.checkpoint)
        if where.kind == "run":
            model = load_encoder_run(where.path)
            tokenizer = read_tokenizer(where.path / "tokenizer")
            mask_id = model.config.mask_id
        else:
            tokenizer = read_tokenizer(where.path)
            mask_id = mask_of(tokenizer, where.path)
            model = load_bert(where.path, mask_id=mask_id)
        return Filler(model, tokenizer, mask_id=mask_id, top_k=self.top_k, batch_tokens=self.batch_tokens)


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer.json of a folder, without padding and truncation; ValueError where there is none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no tokenizer.json; save it with AutoTokenizer.save_pretrained first")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def mask_of(tokenizer: Tokenizer, folder: Path) -> int:
    """The id of a tokenizer's mask; ValueError where it has none."""
    named = read_object(folder / "tokenizer_config.json").get("mask_token")
    named = named.get("content") if isinstance(named, dict) else named
    found = [tokenizer.token_to_id(name) for name in ([named] if named else MASKS)]
    mask_id = next((number for number in found if number is not None), None)
    if mask_id is None:
        raise ValueError(f"{folder}: its tokenizer has no mask token: a masked language model is needed")
    return mask_id
