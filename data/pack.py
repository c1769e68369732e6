"""Packing as a plan: from document lengths alone, which pieces of which documents make row i.

A document of n ids (BOS ... EOS) gives n - 1 pairs (input, target): the shift to the next token happens here, before
packing, so no target crosses a document. A row holds up to seq_len pairs. A document with more is cut into pieces of
seq_len pairs; the target of a piece's last pair is the first id of the next piece, so no target is lost.

Positions restart at 0 in every piece, so they never exceed seq_len - 1. Each piece is a segment of its own and
attention does not leave a segment, so rotary models see the same relative positions as they would with continued ones.

Plans are made a window of documents at a time and kept beside the dataset as memory-mapped arrays.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import xxhash

VERSION = 1

Packing = Literal["first_fit", "concat_then_split"]

WINDOW_DOCUMENTS = 65_536
WINDOW_PAIRS = 1 << 24  # pairs in a window at most, so that its decoded records (32 or 64 MiB) stay in memory ...
WINDOW_ROWS = 1024  # ... but rows for at least so many, so that shuffling within a window means something
NPY_HEADER_BYTES = 1024  # more than the header of a one-dimensional array of numbers
OPEN_BINS = 1024  # rows that first_fit keeps open; the fullest is closed when none has room


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The rows of one source: row r holds pieces row_first[r] : row_first[r + 1], in that order.

    piece_document: place of the document in the source's stream order. piece_start: its first pair, counted in the
    document. piece_length: its pairs. window_first: the first row of each window, and the number of rows at the end.
    """

    seq_len: int
    piece_document: np.ndarray
    piece_start: np.ndarray
    piece_length: np.ndarray
    row_first: np.ndarray
    window_first: np.ndarray

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.row_first) - 1

    @property
    def pairs(self) -> int:
        """Pairs in all rows: every document's ids less one."""
        return int(self.piece_length.sum(dtype=np.int64))

    @property
    def fill(self) -> float:
        """Share of the rows' places that hold a pair."""
        return self.pairs / (self.rows * self.seq_len) if self.rows else 1.0


ARRAYS = {
    "piece_document": np.int64,
    "piece_start": np.int64,
    "piece_length": np.int32,
    "row_first": np.int64,
    "window_first": np.int64,
}


def plan_rows(num_tokens: np.ndarray, seq_len: int, packing: Packing) -> Plan:
    """Plan the rows of documents with `num_tokens` ids each (BOS and EOS included), in the given order."""
    pack = {"first_fit": _first_fit, "concat_then_split": _concat_then_split}
    if packing not in pack:
        raise ValueError(f"loader.packing={packing!r}: expected 'first_fit' or 'concat_then_split'")
    if seq_len < 2:
        raise ValueError(f"loader.seq_len={seq_len}: expected at least 2")
    pairs = np.maximum(np.asarray(num_tokens, np.int64) - 1, 0)
    parts: list[tuple[np.ndarray, ...]] = []
    row_first, window_first = [np.zeros(1, np.int64)], [0]
    pieces = rows = 0
    for first, last in windows(pairs, seq_len):
        document, start, length, row = pack[packing](pairs[first:last], seq_len)
        parts.append((document + first, start, length))
        counts = np.bincount(row) if len(row) else np.zeros(0, np.int64)
        row_first.append(pieces + np.cumsum(counts))
        pieces, rows = pieces + len(row), rows + len(counts)
        window_first.append(rows)
    joined = [np.concatenate(column) for column in zip(*parts)] if parts else [np.zeros(0, np.int64)] * 3
    arrays = dict(zip(ARRAYS, [*joined, np.concatenate(row_first), np.array(window_first)]))
    return Plan(seq_len=seq_len, **{name: arrays[name].astype(dtype) for name, dtype in ARRAYS.items()})


def windows(pairs: np.ndarray, seq_len: int) -> Iterator[tuple[int, int]]:
    """Ranges of documents: at most WINDOW_DOCUMENTS and about max(WINDOW_PAIRS, WINDOW_ROWS * seq_len) pairs each."""
    ends = np.cumsum(pairs)
    limit = max(WINDOW_PAIRS, WINDOW_ROWS * seq_len)
    first = 0
    while first < len(pairs):
        before = int(ends[first - 1]) if first else 0
        last = int(np.searchsorted(ends, before + limit, "right"))
        last = min(max(last, first + 1), first + WINDOW_DOCUMENTS, len(pairs))
        yield first, last
        first = last


def _first_fit(pairs: np.ndarray, seq_len: int) -> tuple[np.ndarray, ...]:
    """Whole pieces of seq_len pairs are rows of their own; each document's rest goes to the first open row that fits.

    Returns document, start, length, row of each piece, sorted by row; rows are in the order in which they were opened.
    """
    whole, rest = np.divmod(pairs, seq_len)
    whole_document = np.repeat(np.arange(len(pairs)), whole)
    whole_start = (np.arange(len(whole_document)) - np.repeat(np.cumsum(whole) - whole, whole)) * seq_len
    document = np.flatnonzero(rest)
    bins = _assign_bins(rest[document], seq_len)
    opened = np.full(bins.max(initial=-1) + 1, len(pairs))
    np.minimum.at(opened, bins, document)  # the document that opened each row
    # Rows in the order of their first document; a document's whole pieces come before its rest.
    keys = np.concatenate([2 * whole_document, 2 * opened + 1])
    rank = np.empty(len(keys), np.int64)
    rank[np.argsort(keys, kind="stable")] = np.arange(len(keys))
    row = np.concatenate([rank[: len(whole_document)], rank[len(whole_document) :][bins]])
    pieces = (
        np.concatenate([whole_document, document]),
        np.concatenate([whole_start, whole[document] * seq_len]),
        np.concatenate([np.full(len(whole_document), seq_len), rest[document]]),
        row,
    )
    order = np.argsort(row, kind="stable")
    return tuple(column[order] for column in pieces)


def _assign_bins(lengths: np.ndarray, seq_len: int) -> np.ndarray:
    """The bin of each length: the first of OPEN_BINS slots with room, else a new bin in the slot of the fullest."""
    free = np.zeros(min(OPEN_BINS, max(len(lengths), 1)), np.int32)  # room in each open bin; 0: not opened or full
    number = np.zeros(len(free), np.int64)
    bins = np.empty(len(lengths), np.int64)
    opened = 0
    for place, length in enumerate(lengths.tolist()):
        slot = int((free >= length).argmax())
        if free[slot] < length:
            slot = int(free.argmin())
            number[slot], free[slot] = opened, seq_len
            opened += 1
        free[slot] -= length
        bins[place] = number[slot]
    return bins


def _concat_then_split(pairs: np.ndarray, seq_len: int) -> tuple[np.ndarray, ...]:
    """All pairs in one line, cut every seq_len: full rows but the last, documents cut wherever a row ends."""
    ends = np.cumsum(pairs)
    begins = ends - pairs
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.union1d(begins[pairs > 0], np.arange(0, total, seq_len))
    document = np.searchsorted(ends, cuts, "right")
    length = np.diff(np.append(cuts, total))
    return document, cuts - begins[document], length, cuts // seq_len


def cached_plan(folder: Path, num_tokens: np.ndarray, seq_len: int, packing: Packing) -> Plan:
    """`plan_rows`, kept in `folder` under a key of its inputs and read back memory-mapped.

    A plan appears whole or not at all, so several processes may ask at once. Where the folder cannot be written the
    plan stays in memory.
    """
    digest = xxhash.xxh3_128(np.ascontiguousarray(num_tokens, "<i8").tobytes())
    settings = [VERSION, seq_len, packing, WINDOW_DOCUMENTS, WINDOW_PAIRS, WINDOW_ROWS, OPEN_BINS]
    digest.update(json.dumps(settings).encode())
    final = folder / digest.hexdigest()
    if not final.is_dir():
        plan = plan_rows(num_tokens, seq_len, packing)
        temporary = folder / f"{final.name}.{os.getpid()}.tmp"
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            for name in ARRAYS:
                np.save(temporary / f"{name}.npy", getattr(plan, name))
            temporary.rename(final)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            if not final.is_dir():  # another process may have been first
                return plan
    try:
        arrays = {name: _mapped_array(final / f"{name}.npy") for name in ARRAYS}
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{final}: unreadable packing plan ({error}); remove this folder, it is made again") from error
    return Plan(seq_len=seq_len, **arrays)


def _mapped_array(path: Path) -> np.ndarray:
    """A one-dimensional .npy file, memory-mapped, without the file descriptor that np.load keeps for each."""
    with pa.memory_map(str(path)) as file:
        content = file.read_buffer()  # stays mapped when the file is closed
    header = io.BytesIO(memoryview(content)[:NPY_HEADER_BYTES])
    np.lib.format.read_magic(header)
    (size,), _, dtype = np.lib.format.read_array_header_1_0(header)
    return np.frombuffer(content, dtype, size, header.tell()) if size else np.empty(0, dtype)
