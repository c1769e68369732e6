"""Batches from token shards: a pure function of (dataset, seed, step).

    loader = open_loader(dataset, LoaderConfig(seq_len=2048, global_batch_size=64))
    loader.batch(7)                       this process's rows of the batch of step 7
    for batch in loader.iterate(7): ...   the batches of steps 7, 8, ..., prefetched

Global row number g = step * global_batch_size + i. A row's source follows from g alone (data.mixture); which row of
that source follows from how many it has had and the seed (data.row_order).
A process gets the rows that it asks for; process p of P by default [p * B / P, (p + 1) * B / P).
"""

from __future__ import annotations

import atexit
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grain
import numpy as np

from data.loader_stats import LoaderStats, RowInfo, SourceStats
from data.mixture import Mixture
from data.pack import Packing, Plan, cached_plan
from data.row_order import RowOrder
from data.rows import Batch, RowMaker, adapter_names, adapter_numbers, checked, empty_batch
from data.token_reader import SourceIndex, TokenReader, open_tokens
from data.tokenizer import Tokenizer
from data.weights import EpochCap, Phases, Weights, capped, check_weights, weight_phases

LAST_STEP = 1 << 48  # Grain asks for a length; no run gets there


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How rows are made and mixed.

    seq_len: pairs (input, target) a row. global_batch_size: rows a step over all processes and accumulation steps.
    packing: "first_fit" keeps documents of up to seq_len pairs whole; "concat_then_split" fills every row.
    weights: (source, share of tokens) pairs, on any scale, or a Temperature; empty for proportional to tokens. A source
        that pairs leave out is not used. See data.weights for how languages are named.
    changes: a curriculum: (step, weights) pairs, each in force from its step on.
    epoch_cap: how often a source may be seen at most in the run. A run with either keeps its batch size and seq_len.
    adapters: (source, name of its adapter) pairs, sources named as in weights; empty: one adapter for all, or none.
    skip: ranges [start, stop) of global row numbers that keep their place with loss weight 0.
    prefetch: batches made ahead; cache_bytes: of decoded records kept. Neither changes any batch.
    """

    seq_len: int
    global_batch_size: int
    packing: Packing = "first_fit"
    weights: Weights = ()
    changes: tuple[tuple[int, Weights], ...] = ()
    epoch_cap: EpochCap | None = None
    adapters: tuple[tuple[str, str], ...] = ()
    skip: tuple[tuple[int, int], ...] = ()
    seed: int = 0
    prefetch: int = 2
    cache_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        for name, least in (("seq_len", 2), ("global_batch_size", 1), ("prefetch", 0), ("cache_bytes", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"loader.{name}={getattr(self, name)}: expected at least {least}")
        if self.packing not in ("first_fit", "concat_then_split"):
            raise ValueError(f"loader.packing={self.packing!r}: expected 'first_fit' or 'concat_then_split'")
        check_weights(self.weights, self.changes)
        for start, stop in self.skip:
            if not 0 <= start < stop:
                raise ValueError(f"loader.skip: [{start}, {stop}) is not a range of global row numbers")


class Loader:
    """The training batches of one dataset. See the module's first lines; `open_loader` makes one."""

    def __init__(self, reader: TokenReader, plans: dict[str, Plan], config: LoaderConfig, rows: np.ndarray):
        self.config = config
        self._origin = (0, 0)  # (step, its first global row)
        self._reader, self._plans, self._rows = reader, plans, rows
        tokens = {source: plan.pairs for source, plan in plans.items()}
        phases = self._phases(tokens)
        weights = phases[0][1]
        total = sum(weights.values())
        self._sources = [source for source in plans if any(source in shares for _, shares in phases)]
        self.adapters = adapter_names(config.adapters)  # in the order of their numbers
        numbers = adapter_numbers(config.adapters, self._sources)
        self._makers = [RowMaker(reader, source, plans[source], numbers.get(source)) for source in self._sources]
        self._orders = [RowOrder(plans[source], source, config.seed) for source in self._sources]
        by_place = [(first, [shares.get(source, 0.0) for source in self._sources]) for first, shares in phases]
        self._mixture = Mixture(by_place, self._orders)
        shares = dict(zip(self._sources, self._mixture.row_shares.tolist()))
        self.stats = LoaderStats(
            rows=sum(plans[source].rows for source in self._sources),
            fill=sum(share * plans[source].fill for source, share in shares.items()),
            sources={
                source: SourceStats(
                    documents=reader.index[source].documents,
                    tokens=tokens[source],
                    num_bytes=int(reader.index[source].num_bytes.sum()),
                    rows=plans[source].rows,
                    fill=plans[source].fill,
                    weight=weights.get(source, 0.0) / total,
                    row_share=shares[source],
                )
                for source in self._sources
            },
        )

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the tokenizer that made the ids."""
        return self._reader.fingerprint

    @property
    def paired(self) -> bool:
        """Whether any source holds preferences, whose chosen and rejected chats are neighbouring segments."""
        return any(self._reader.index[source].second is not None for source in self._sources)

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        return int(self._reader.header["vocab_size"])

    @property
    def places(self) -> np.ndarray:
        """The places in a global batch that `batch` makes here, in its order."""
        return self._rows

    def planned_epochs(self, steps: int) -> dict[str, float]:
        """How often each source is seen in the first `steps` steps."""
        rows = self._mixture.rows_before(steps * self.config.global_batch_size).tolist()
        return {source: count / self._plans[source].rows for source, count in zip(self._sources, rows)}

    def batch(self, step: int) -> Batch:
        """This process's rows of the global batch of `step` (counted from 0): [B / P, T] arrays."""
        rows = self._global_rows(step)[self._rows]
        batch = empty_batch(len(rows), self.config.seq_len, self._reader.header["pad_id"], adapters=bool(self.adapters))
        for place, (source, _, plan_row) in enumerate(self._located(rows)):
            self._makers[source].fill(batch, place, plan_row)
        for start, stop in self.config.skip:
            batch["loss_weights"][(rows >= start) & (rows < stop)] = 0.0
        return checked(batch)

    def begin(self, step: int, row: int) -> None:
        """The batch of `step` begins with global row `row` from here on: of a run whose batch size changed.

        Raises ValueError in one line where the mixture changes at steps, or a cap counts them: both are planned as rows
        of as many batches, so with other batches the rows before `row` would not be those that the run has seen.
        """
        size, config = self.config.global_batch_size, self.config
        if row != step * size and (config.changes or config.epoch_cap):
            setting = "loader.changes" if config.changes else "loader.epoch_cap"
            raise ValueError(
                f"{setting} counts steps, and {step} steps of {size} rows are {step * size}, not the {row} that this "
                "run has read: a run with it cannot change loader.global_batch_size or loader.seq_len; set them back, "
                "or give this run a run_dir of its own"
            )
        self._origin = (step, row)

    def first_row(self, step: int) -> int:
        """The first global row of the batch of `step`."""
        return self._origin[1] + (step - self._origin[0]) * self.config.global_batch_size

    @property
    def tokens_per_row(self) -> float:
        """Of the mix that is drawn, on average."""
        return float(self.stats.fill * self.config.seq_len)

    def iterate(self, start_step: int = 0) -> Generator[Batch, None, None]:
        """The batches of start_step, start_step + 1, ... without end, made `prefetch` ahead in one thread."""
        steps = grain.MapDataset.range(start_step, LAST_STEP).map(self.batch)
        dataset = steps.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        if self.config.prefetch:
            dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=self.config.prefetch)
        held = [iter(dataset)]

        def close() -> None:
            while held:
                held.pop().close()  # ends the thread
                atexit.unregister(close)

        atexit.register(close)  # for a caller that still holds the generator when the interpreter ends
        try:
            while True:
                yield next(held[0])
        finally:
            close()

    def rows_of(self, step: int) -> list[RowInfo]:
        """What every row of the whole global batch of `step` is made of; the same on every process."""
        rows = self._global_rows(step)
        infos = []
        for row, (source, epoch, plan_row) in zip(rows.tolist(), self._located(rows)):
            name = self._sources[source]
            plan = self._plans[name]
            pieces = slice(int(plan.row_first[plan_row]), int(plan.row_first[plan_row + 1]))
            documents, starts = plan.piece_document[pieces], plan.piece_start[pieces]
            second = self._reader.index[name].second
            if second is not None:  # a preference is two segments
                starts = np.stack([starts, second[documents]], axis=1).reshape(-1)
                documents = np.repeat(documents, 2)
            infos.append(
                RowInfo(
                    row=row,
                    source=name,
                    epoch=epoch,
                    plan_row=plan_row,
                    doc_ids=tuple(self._reader.doc_ids(name, documents)),
                    starts=tuple(starts.tolist()),
                )
            )
        return infos

    def _global_rows(self, step: int) -> np.ndarray:
        if step < 0:
            raise ValueError(f"step {step}: expected 0 or more")
        return self.first_row(step) + np.arange(self.config.global_batch_size)

    def _phases(self, tokens: dict[str, int]) -> Phases:
        """(first global row, shares of tokens) of each phase, sources with too few rows for the run cut down."""
        config, size = self.config, self.config.global_batch_size
        phases = [(step * size, shares) for step, shares in weight_phases(config.weights, config.changes, tokens)]
        cap = config.epoch_cap and EpochCap(epochs=config.epoch_cap.epochs, steps=config.epoch_cap.steps * size)
        return capped(phases, cap, {source: plan.rows for source, plan in self._plans.items()}, tokens)

    def _located(self, rows: np.ndarray) -> list[tuple[int, int, int]]:
        """(source, epoch, row in the source's plan) of global rows."""
        sources, items = self._mixture.locate(rows)
        return [(source, *self._orders[source].row(item)) for source, item in zip(sources.tolist(), items.tolist())]


def open_loader(
    dataset: Path,
    config: LoaderConfig,
    *,
    split: str = "train",
    process_index: int = 0,
    process_count: int = 1,
    rows: Sequence[int] | np.ndarray | None = None,
    tokenizer: Tokenizer | None = None,
) -> Loader:
    """Open a dataset for training. Give the model's tokenizer to have a dataset built with another one refused.

    rows: places in a global batch that `Loader.batch` makes; None: an even share of the processes.

    Raises ValueError in one line for a missing or damaged dataset, another tokenizer, weights that do not fit its
    sources, or a global batch that the processes cannot share evenly.
    """
    if rows is None:
        rows = process_rows(config.global_batch_size, process_index, process_count)
    reader = open_tokens(dataset, split, tokenizer=tokenizer, cache_bytes=config.cache_bytes)
    folder = Path(dataset) / "cache" / "plans"
    tokens = {source: index.tokens for source, index in reader.index.items()}
    wanted = {source for _, shares in weight_phases(config.weights, config.changes, tokens) for source in shares}
    check_whole({source: reader.index[source] for source in wanted}, config)
    _check_pairs({source: reader.index[source].second is not None for source in reader.index if source in wanted})
    plans = {
        source: cached_plan(folder, index.num_tokens, config.seq_len, config.packing)
        for source, index in reader.index.items()
        if source in wanted
    }
    return Loader(reader, plans, config, np.asarray(rows))


def _check_pairs(paired: Mapping[str, bool]) -> None:
    """Refuse (ValueError, one line) preferences beside other documents, whose neighbours are no pairs."""
    if len(set(paired.values())) > 1:
        pairs, others = (
            ", ".join(name for name, is_pair in paired.items() if is_pair is kind) for kind in (True, False)
        )
        raise ValueError(
            f"loader.weights mixes preferences ({pairs}) with documents that are none ({others}): name one kind alone"
        )


def check_whole(index: Mapping[str, SourceIndex], config: LoaderConfig) -> None:
    """Refuse (ValueError, one line) rows that would cut a chat."""
    for name, source in index.items():
        longest = int(source.num_tokens.max(initial=0)) - 1
        if source.whole and config.packing != "first_fit":
            raise ValueError(f"source {name} holds chats, which {config.packing} would cut: use packing='first_fit'")
        if source.whole and longest > config.seq_len:
            count = int(np.count_nonzero(source.num_tokens - 1 > config.seq_len))
            raise ValueError(
                f"source {name}: {count:,} of {source.documents:,} chats are longer than loader.seq_len="
                f"{config.seq_len} (the longest has {longest + 1:,} tokens): raise it, or set Chats(max_tokens="
                f"{config.seq_len + 1}), which drops them with a reason or, asked to, truncates them"
            )


def process_rows(batch_size: int, process_index: int, process_count: int) -> range:
    """The rows of a global batch that belong to one process; ValueError when they cannot be shared evenly."""
    if not 0 <= process_index < process_count or batch_size % process_count:
        raise ValueError(
            f"process {process_index} of {process_count} cannot take its share of {batch_size} rows; "
            "loader.global_batch_size must be a multiple of the number of processes"
        )
    share = batch_size // process_count
    return range(process_index * share, (process_index + 1) * share)
