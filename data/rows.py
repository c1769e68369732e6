"""Rows of a plan as the arrays that a model reads: inputs, targets, segments, positions, loss weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from data.pack import Plan
from data.token_reader import TokenReader

# inputs, targets, segment_ids, positions: int32 [B, T]; loss_weights: float32 [B, T]; where sources have adapters,
# adapter_ids: int32 [B, T], the same number all along a row
Batch = dict[str, np.ndarray]


class RowMaker:
    """Rows of one source's plan as arrays.

    A preference is two segments: 1 and 2 are the chosen and the rejected chat of a row's first pair, 3 and 4 of its
    second, and so on. The place between them, whose target would be of the other chat, has no loss.

    adapter: the number that the rows choose their adapter by; None where batches have none.
    """

    def __init__(self, reader: TokenReader, source: str, plan: Plan, adapter: int | None = None):
        self._reader, self._source, self._plan, self._adapter = reader, source, plan, adapter
        self._index = reader.index[source]
        self._counting = np.arange(plan.seq_len, dtype=np.int32)

    def fill(self, batch: Batch, place: int, row: int) -> None:
        """Write row `row` of the plan into place `place` of a batch that holds padding there."""
        plan, index, reader, column = self._plan, self._index, self._reader, 0
        if self._adapter is not None:
            batch["adapter_ids"][place] = self._adapter
        first, last = int(plan.row_first[row]), int(plan.row_first[row + 1])
        begins = index.begins[plan.piece_document[first:last]] + plan.piece_start[first:last]
        for segment, (begin, length) in enumerate(zip(begins.tolist(), plan.piece_length[first:last].tolist()), 1):
            end = column + length
            ids = reader.ids(self._source, begin, begin + length + 1)
            batch["inputs"][place, column:end] = ids[:-1]
            batch["targets"][place, column:end] = ids[1:]
            batch["segment_ids"][place, column:end] = segment
            batch["positions"][place, column:end] = self._counting[:length]
            batch["loss_weights"][place, column:end] = (
                reader.loss_weights(self._source, begin + 1, begin + length + 1) if index.weighted else 1.0
            )
            if index.second is not None:
                border = column + int(index.second[plan.piece_document[first + segment - 1]])
                batch["segment_ids"][place, column:border] = 2 * segment - 1
                batch["segment_ids"][place, border:end] = 2 * segment
                batch["positions"][place, border:end] = self._counting[: end - border]
                batch["loss_weights"][place, border - 1] = 0.0
            column = end


def adapter_names(adapters: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """The adapters of (source, adapter) pairs, in the order of their numbers."""
    return tuple(dict.fromkeys(name for _, name in adapters))


def adapter_numbers(
    adapters: Sequence[tuple[str, str]], sources: Iterable[str], *, others: int | None = None
) -> dict[str, int]:
    """The number of the adapter of every source, {} where none has one.

    adapters: (source, adapter) as of `LoaderConfig.adapters`; the first of the pairs that names a source counts.
    others: the number of sources that no pair names; None: they are refused, and so is a pair that names no source.
    """
    if not adapters:
        return {}
    names, sources = adapter_names(adapters), list(sources)
    named = {source: (source, source.partition(":")[0], f":{source.partition(':')[2]}") for source in sources}
    for wanted, name in adapters if others is None else ():
        if not any(wanted in kinds for kinds in named.values()):
            raise ValueError(f"loader.adapters: no rows are of {wanted!r}, of adapter {name!r}; sources: {sources}")
    found: dict[str, int] = {}
    for source, kinds in named.items():
        chosen = [name for wanted, name in adapters if wanted in kinds]
        if not chosen and others is None:
            raise ValueError(f"loader.adapters gives source {source!r} none: name one, or leave it out of the weights")
        found[source] = names.index(chosen[0]) if chosen else others or 0
    return found


def empty_batch(rows: int, seq_len: int, pad_id: int, *, adapters: bool = False) -> Batch:
    """Rows of padding: pad ids, segment 0, position 0, loss weight 0, with `adapters` adapter 0."""
    batch = {name: np.zeros((rows, seq_len), np.int32) for name in ("inputs", "targets", "segment_ids", "positions")}
    batch["inputs"][:] = batch["targets"][:] = pad_id
    batch["loss_weights"] = np.zeros((rows, seq_len), np.float32)
    if adapters:
        batch["adapter_ids"] = np.zeros((rows, seq_len), np.int32)
    return batch


def checked(batch: Batch) -> Batch:
    """The batch, once every dtype is what the model is compiled for."""
    for name, array in batch.items():
        wanted = np.float32 if name == "loss_weights" else np.int32
        assert array.dtype == wanted, f"{name} is {array.dtype}, expected {wanted.__name__}"
    return batch
