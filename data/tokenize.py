"""Document -> Tokens. The one place that decides where BOS and EOS stand: BOS + ids of the text + EOS."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data.document import Document
from data.tokenizer import Tokenizer

VERSION = 1

BATCH_CHARS = 1 << 20  # characters of text handed to the tokenizer at once
BATCH_DOCUMENTS = 1024


@dataclass(frozen=True, slots=True)
class Tokens:
    """One document as ids.

    ids: BOS, the text's ids, EOS; uint16 where the vocabulary fits, else uint32.
    loss_weights: float32, one for each id as a target (the first, BOS, is never one); None where all are 1.
    num_bytes: UTF-8 bytes of the text, what bits per byte divide by.
    """

    ids: np.ndarray
    loss_weights: np.ndarray | None
    num_bytes: int


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 for vocabularies of up to 65,536 ids, else uint32; little-endian, as on disk."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def tokenize(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[tuple[Document, Tokens]]:
    """The documents with their tokens, in order, at memory bounded by a batch.

    A document whose meta has "loss_spans", a list of [start, stop) ranges of characters, in order and apart, is trained
    only on those: the text is encoded in parts cut at their ends, so that no token lies across one. EOS counts when the
    last span reaches the end of the text.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    batch: list[Document] = []
    chars = 0
    for document in documents:
        batch.append(document)
        chars += len(document.text)
        if chars >= BATCH_CHARS or len(batch) >= BATCH_DOCUMENTS:
            yield from _tokenize_batch(batch, tokenizer, dtype)
            batch, chars = [], 0
    if batch:
        yield from _tokenize_batch(batch, tokenizer, dtype)


def _tokenize_batch(
    batch: Sequence[Document], tokenizer: Tokenizer, dtype: np.dtype
) -> Iterator[tuple[Document, Tokens]]:
    for document, ids in zip(batch, tokenizer.encode_batch([document.text for document in batch])):
        weights = None
        if "loss_spans" in document.meta:
            ids, weights = _weighted(document, tokenizer)
        tokens = np.empty(len(ids) + 2, dtype)
        tokens[0], tokens[-1] = tokenizer.bos_id, tokenizer.eos_id
        tokens[1:-1] = ids
        text = document.text
        yield document, Tokens(tokens, weights, len(text) if text.isascii() else len(text.encode()))


def _weighted(document: Document, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a document with loss spans, and the weights of BOS, ids and EOS."""
    text, ids, weights, end = document.text, [], [0.0], 0
    for start, stop in document.meta["loss_spans"]:
        if not end <= start < stop <= len(text):
            raise ValueError(
                f"document {document.id}: loss span [{start}, {stop}) is not within [{end}, {len(text)}] characters"
            )
        for part, weight in ((text[end:start], 0.0), (text[start:stop], 1.0)):
            part_ids = tokenizer.encode(part)
            ids += part_ids
            weights += [weight] * len(part_ids)
        end = stop
    rest = tokenizer.encode(text[end:])
    weights += [0.0] * len(rest) + [1.0 if end == len(text) and end else 0.0]
    return np.array(ids + rest, np.uint32), np.array(weights, np.float32)
