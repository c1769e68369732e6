"""Which bytes of which document a token stands for.

    trace(dataset, "train", "code", 123_456)     place 123,456 in the stream of ids of a source
    trace_row(loader, dataset, step=7, row=3, column=200)     a place of a training batch

Token shards keep where each document's ids begin; a token's bytes within its document follow from the ids before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.document import Document
from data.loader import Loader
from data.store import at_hand
from data.tables import read_documents
from data.token_reader import TokenReader, open_tokens
from data.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One id. place: which of its document's ids it is, BOS being 0. start, stop: UTF-8 bytes of the document's text
    that it stands for, equal for BOS and EOS. text: those bytes, with U+FFFD where they cut a character."""

    doc_id: str
    source: str
    token: int
    place: int
    start: int
    stop: int
    text: str


def trace(dataset: Path, split: str, source: str, position: int) -> Trace:
    """The id at `position` of a source's stream. Raises ValueError in one line for a place that is not there."""
    reader = open_tokens(dataset, split)
    if source not in reader.index:
        raise ValueError(f"{dataset}: no source {source!r} in {split}; it has {', '.join(sorted(reader.index))}")
    index = reader.index[source]
    if not 0 <= position < index.tokens:
        raise ValueError(f"{dataset}: {source} has {index.tokens:,} ids in {split}; {position} is not among them")
    document = int(np.searchsorted(index.begins, position, "right")) - 1
    return _traced(dataset, reader, source, document, position - int(index.begins[document]))


def trace_row(loader: Loader, dataset: Path, *, step: int, row: int, column: int, split: str = "train") -> Trace:
    """The input at [row, column] of the global batch of `step`.

    Raises ValueError in one line for padding, or a row that another process makes.
    """
    here = np.flatnonzero(loader.places == row)
    if not len(here):
        raise ValueError(f"row {row} of the global batch is not made here; places here are {loader.places.tolist()}")
    info = loader.rows_of(step)[row]
    segments = loader.batch(step)["segment_ids"][here[0]]
    segment = int(segments[column])
    if not segment:
        raise ValueError(
            f"step {step}, row {row}, column {column} is padding: the row has {np.count_nonzero(segments)}"
        )
    reader = open_tokens(dataset, split)
    names = reader.doc_ids(info.source, np.arange(reader.index[info.source].documents))
    place = info.starts[segment - 1] + column - int(np.searchsorted(segments[: column + 1], segment, "left"))
    return _traced(dataset, reader, info.source, names.index(info.doc_ids[segment - 1]), place)


def byte_ends(tokenizer: Tokenizer, ids: Sequence[int], text: str, *, rendered: bool = False) -> np.ndarray:
    """Where each of a document's ids (BOS and EOS included) ends in its text, in UTF-8 bytes: int64 [n].

    rendered: the text is a chat with its special tokens written out. Raises ValueError in one line where the ids are
    not those of the text, as with a tokenizer that rewrites it.
    """
    content, ends, done = text.encode(), np.empty(len(ids), np.int64), 0
    for place, token in enumerate(ids):
        part = tokenizer.token_bytes(int(token))
        if rendered and not part:
            part = tokenizer.piece(int(token)).encode()
        if part and content.startswith(part, done):
            done += len(part)
        elif part:
            raise ValueError(f"id {token} at place {place} is not what stands at byte {done} of the text")
        ends[place] = done
    if done != len(content):
        raise ValueError(f"the ids end at byte {done} of {len(content)}")
    return ends


def _traced(dataset: Path, reader: TokenReader, source: str, document: int, place: int) -> Trace:
    doc_id = reader.doc_ids(source, np.array([document]))[0]
    ids = reader.document_ids(source, document).tolist()
    found = find_document(dataset, doc_id)
    text = found.text
    ends = byte_ends(load_tokenizer(dataset / "tokenizer"), ids, text, rendered="rendered" in found.meta)
    start, stop = (int(ends[place - 1]) if place else 0), int(ends[place])
    return Trace(
        doc_id=doc_id,
        source=source,
        token=ids[place],
        place=place,
        start=start,
        stop=stop,
        text=text.encode()[start:stop].decode("utf-8", "replace"),
    )


def find_document(dataset: Path, doc_id: str) -> Document:
    """A kept document of a dataset by its id, read from its shard alone; ValueError in one line where it is not."""
    at_hand(dataset, "documents")
    for path in sorted((dataset / "documents").glob("*.parquet")):
        ids = pq.read_table(path, columns=["id"]).column("id")
        row = pc.index(ids, pa.scalar(doc_id, ids.type)).as_py()
        if row >= 0:
            return next(document for place, document in enumerate(read_documents(path)) if place == row)
    raise ValueError(f"{dataset}: no document {doc_id!r} in documents/")
