"""Greedy and beam search for an encoder-decoder in batches of like length, with a cache that grows.

    search = Searcher(model)
    search(sources, SearchConfig(num_beams=4))          lists of ids in, lists of ids out, in the order given

The tokens are those of transformers' `generate` (5.x). A sentence is padded by its own length alone. The rows of a
batch change its logits by what the sums of another program round differently, 2e-6 of a 512-wide model on a CPU:
another batch size or other neighbours change a target only where two continuations are as close as that. The compiled
functions are in models.seq2seq_search.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.decode import bucket
from models.seq2seq import Seq2SeqLM
from models.seq2seq_search import ROW_STEP, SearchConfig, compiled_search, empty_beams, read_sources, regrow

WIDTH_STEP, FINE_WIDTHS = 16, 64  # source tokens: sentences are short, and the encoder costs as much as a dozen steps
FEWEST_SLOTS = 32  # target tokens that the cache holds at first; it doubles while sentences go on


class Searcher:
    """A model laid out for searching."""

    def __init__(self, model: Seq2SeqLM):
        self.config = model.config
        self.graph, self.state = nnx.split(model)
        self.kernel_DV = jnp.asarray(model.output_kernel())

    def __call__(self, sources: Sequence[Sequence[int]], config: SearchConfig) -> list[list[int]]:
        """The best target of every source, without the start token, EOS and padding.

        Raises ValueError for an empty source, one longer than the model's positions, or an unknown id.
        """
        self.check(sources)
        limit = min(config.max_length, self.config.max_positions)
        config = replace(config, max_length=limit)
        out: list[list[int]] = [[] for _ in sources]
        order = sorted(range(len(sources)), key=lambda i: (len(sources[i]), i))
        for width, group in groupby(order, lambda i: min(width_for(len(sources[i])), self.config.max_positions)):
            alike = list(group)
            for start in range(0, len(alike), config.batch_size):
                chosen = alike[start : start + config.batch_size]
                for place, ids in zip(chosen, self._batch([sources[i] for i in chosen], width, config)):
                    out[place] = ids
        return out

    def check(self, sources: Sequence[Sequence[int]]) -> None:
        """ValueError where a source cannot be read."""
        most, vocabulary = self.config.max_positions, self.config.vocab_size
        for number, source in enumerate(sources):
            if not len(source) or len(source) > most:
                raise ValueError(f"source {number} has {len(source)} tokens: expected 1 to {most}; split the sentence")
            if min(source) < 0 or max(source) >= vocabulary:
                raise ValueError(f"source {number} has an id outside of the vocabulary of {vocabulary}")

    def _batch(self, sources: list[Sequence[int]], width: int, config: SearchConfig) -> list[list[int]]:
        """Search for one batch: the cache doubles when it is full, the batch shrinks when half of it is left."""
        rows = rows_for(len(sources), config.batch_size)
        ids, mask = np.full((rows, width), self.config.pad_id, np.int32), np.zeros((rows, width), bool)
        for row in range(rows):
            source = sources[min(row, len(sources) - 1)]
            ids[row, : len(source)], mask[row, : len(source)] = source, True
        cross = read_sources(self.graph, self.state, ids, mask)
        owners = np.arange(len(sources))
        found: list[list[int]] = [[] for _ in sources]
        slots = min(FEWEST_SLOTS, config.max_length)
        beams = empty_beams(self.graph, self.state, cross, config.num_beams, slots)
        mask_BS = jnp.asarray(mask)
        while len(owners):
            beams = compiled_search()(self.graph, self.state, self.kernel_DV, cross, mask_BS, beams, config)
            done = ~np.asarray(beams.open_B)[: len(owners)] | (int(beams.length) >= config.max_length)
            best_BC = np.asarray(beams.best_BKC[:, 0])
            for ended in np.flatnonzero(done):
                found[owners[ended]] = self._trim(best_BC[ended].tolist())
            left = np.flatnonzero(~done)
            owners = owners[left]
            if len(owners):
                slots = min(2 * slots, config.max_length) if int(beams.length) >= slots else slots
                kept = np.resize(left, rows_for(len(left), config.batch_size))
                cross, mask_BS, beams = regrow(cross, mask_BS, beams, jnp.asarray(kept), slots)
        return found

    def _trim(self, ids: list[int]) -> list[int]:
        ids = ids[1:]
        if self.config.eos_id in ids:
            ids = ids[: ids.index(self.config.eos_id)]
        return [token for token in ids if token != self.config.pad_id]


def width_for(length: int) -> int:
    """Places that a source of this length is padded to: multiples of WIDTH_STEP, then powers of two."""
    steps = -(-length // WIDTH_STEP) * WIDTH_STEP
    return steps if steps <= FINE_WIDTHS else bucket(length)


def rows_for(count: int, batch_size: int) -> int:
    """Rows of a batch that holds `count` sentences: the full size, a half of it, a quarter: few compilations."""
    rows = batch_size
    while rows // ROW_STEP >= max(count, 1):
        rows //= ROW_STEP
    return rows
