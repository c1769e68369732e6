"""Held-out rows for evaluation: each source by itself, in order, every row exactly once, never shuffled.

Bits per byte of a source = sum of nats of all its targets / (ln 2 * num_bytes). Targets are every id after BOS, the
first one and EOS included; num_bytes are the UTF-8 bytes of the cleaned texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.loader import LoaderConfig, check_whole, process_rows
from data.pack import Plan, plan_rows
from data.rows import Batch, RowMaker, adapter_numbers, checked, empty_batch
from data.token_reader import TokenReader, open_tokens
from data.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class HeldOutRows:
    """The held-out documents of one source as batches.

    num_targets: pairs with loss, what the loss weights of all batches sum to (without loss spans).
    num_bytes: UTF-8 bytes of the documents' texts.
    """

    source: str
    num_documents: int
    num_targets: int
    num_bytes: int
    num_rows: int
    reader: TokenReader
    plan: Plan
    config: LoaderConfig
    rows: np.ndarray

    @property
    def weighted(self) -> bool:
        """Whether some targets have no loss, as the questions of chats have none."""
        return self.reader.index[self.source].weighted

    @property
    def num_batches(self) -> int:
        """Batches of `batches()`: the same on every process."""
        return -(-self.num_rows // self.config.global_batch_size)

    def batches(self) -> Iterator[Batch]:
        """This process's rows of each global batch, in order; the last batch is filled up with padding rows."""
        adapters = self.config.adapters
        number = adapter_numbers(adapters, [self.source], others=-1).get(self.source)  # the base, where none learns it
        maker = RowMaker(self.reader, self.source, self.plan, number)
        for first in range(0, self.num_rows, self.config.global_batch_size):
            pad = self.reader.header["pad_id"]
            batch = empty_batch(len(self.rows), self.config.seq_len, pad, adapters=bool(adapters))
            for place, row in enumerate((first + self.rows).tolist()):
                if row < self.num_rows:
                    maker.fill(batch, place, row)
            yield checked(batch)


def open_heldout(
    dataset: Path,
    config: LoaderConfig,
    *,
    batch_size: int | None = None,
    max_bytes: int | None = None,
    split: str = "heldout",
    process_index: int = 0,
    process_count: int = 1,
    places: Sequence[int] | np.ndarray | None = None,
    tokenizer: Tokenizer | None = None,
) -> dict[str, HeldOutRows]:
    """The held-out rows by source. Weights, seed and skip of `config` play no part.

    places: rows of a global batch that are made here; None: an even share of the processes. batch_size: rows over all
    processes, the training batch's when None. max_bytes: about so many bytes of text a source, whole documents in
    their stored (hash) order, so not chosen by length; None for all.
    """
    if batch_size is not None:
        config = replace(config, global_batch_size=batch_size)
    if places is None:
        places = process_rows(config.global_batch_size, process_index, process_count)
    reader = open_tokens(dataset, split, tokenizer=tokenizer, cache_bytes=config.cache_bytes)
    check_whole(reader.index, config)
    opened = {}
    for source, index in reader.index.items():
        count = index.documents
        if max_bytes is not None:
            count = min(count, int(np.searchsorted(np.cumsum(index.num_bytes), max_bytes)) + 1)
        plan = plan_rows(index.num_tokens[:count], config.seq_len, config.packing)
        opened[source] = HeldOutRows(
            source=source,
            num_documents=count,
            num_targets=plan.pairs,
            num_bytes=int(index.num_bytes[:count].sum()),
            num_rows=plan.rows,
            reader=reader,
            plan=plan,
            config=config,
            rows=np.asarray(places),
        )
    return opened


def heldout_batches(dataset: Path, config: LoaderConfig, **options: object) -> Iterator[tuple[str, Batch]]:
    """(source, batch) over all held-out rows, source after source; options as of `open_heldout`."""
    for source, rows in open_heldout(dataset, config, **options).items():  # type: ignore[arg-type]
        for batch in rows.batches():
            yield source, batch
