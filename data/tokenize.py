"""Document -> Tokens. The one place that decides where BOS and EOS stand: BOS + ids of the text + EOS.

A chat that `data.chat_stage` rendered has the marks of its template and nothing besides: its ids are those of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from data.chat import CHAT_KEYS
from data.chat_tokens import ChatEncoder, text_hash
from data.document import Document
from data.tokenizer import Tokenizer

VERSION = 1

BATCH_CHARS = 1 << 18  # characters of text handed to the tokenizer at once
BATCH_DOCUMENTS = 512


@dataclass(frozen=True, slots=True)
class Tokens:
    """One document as ids.

    ids: BOS, the text's ids, EOS; uint16 where the vocabulary fits, else uint32.
    loss_weights: float32, one for each id as a target (the first, BOS, is never one); None where all are 1.
    num_bytes: UTF-8 bytes of the text, what bits per byte divide by.
    second: of a preference, how many ids the chosen chat has, before the rejected one; 0 for anything else.
    whole: whether it must lie in one row: an answer without its question teaches nothing.
    """

    ids: np.ndarray
    loss_weights: np.ndarray | None
    num_bytes: int
    second: int = 0
    whole: bool = False


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 for vocabularies of up to 65,536 ids, else uint32; little-endian, as on disk."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def tokenize(
    documents: Iterable[Document], tokenizer: Tokenizer, chats: Callable[[], ChatEncoder] | None = None
) -> Iterator[tuple[Document, Tokens]]:
    """The documents with their tokens, in order, at memory bounded by two batches.

    chats: makes what encodes rendered chats, from the same tokenizer; not called where there are none.

    A document whose meta has "loss_spans", a list of [start, stop) ranges of characters, in order and apart, is trained
    only on those: the text is encoded in parts cut at their ends, so that no token lies across one. EOS counts when the
    last span reaches the end of the text.

    A batch is encoded in a thread, outside Python's lock, while the one after it is read and the one before it written.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    with ThreadPoolExecutor(max_workers=1) as thread:
        before: tuple[list[Document], Future[list[np.ndarray]]] | None = None
        for batch in _batches(documents):
            texts = ["" if "rendered" in document.meta else document.text for document in batch]
            encoding = thread.submit(tokenizer.encode_batch, texts)
            if before:
                yield from _with_tokens(before[0], before[1].result(), tokenizer, dtype, chats)
            before = batch, encoding
        if before:
            yield from _with_tokens(before[0], before[1].result(), tokenizer, dtype, chats)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents by BATCH_CHARS of text or BATCH_DOCUMENTS, whichever comes first."""
    batch: list[Document] = []
    chars = 0
    for document in documents:
        batch.append(document)
        chars += len(document.text)
        if chars >= BATCH_CHARS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _with_tokens(
    batch: Sequence[Document],
    encoded: Sequence[np.ndarray],
    tokenizer: Tokenizer,
    dtype: np.dtype,
    chats: Callable[[], ChatEncoder] | None,
) -> Iterator[tuple[Document, Tokens]]:
    for document, ids in zip(batch, encoded):
        if "rendered" in document.meta:
            yield document, _chat_tokens(document, chats, dtype)
            continue
        if unread := [key for key in CHAT_KEYS if key in document.meta]:
            raise ValueError(
                f"document {document.id} has {unread[0]} that were not rendered as a chat: add Chats(tokenizer=...) to "
                "data.stages, or read the source as text"
            )
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


def _chat_tokens(document: Document, chats: Callable[[], ChatEncoder] | None, dtype: np.dtype) -> Tokens:
    """A rendered chat, or the two of a preference one after another."""
    text, meta = document.text, document.meta
    if chats is None:
        raise ValueError(f"document {document.id} is a rendered chat, which this tokenizer folder cannot encode")
    if meta["rendered"] != text_hash(text):
        raise ValueError(
            f"document {document.id}: its text was changed after it was rendered as a chat, so that its loss spans lie "
            "elsewhere; put stages that change text before Chats, or into Chats(clean=...)"
        )
    encoder = chats()
    border = meta.get("second", len(text))
    ids, weights = encoder.weighted(text[:border], [span for span in meta["loss_spans"] if span[0] < border])
    second = 0
    if border < len(text):
        spans = [[start - border, stop - border] for start, stop in meta["loss_spans"] if start >= border]
        second, (more, weights_of_more) = len(ids), encoder.weighted(text[border:], spans)
        ids, weights = ids + more, np.concatenate([weights, weights_of_more])
    return Tokens(np.array(ids, dtype), weights, len(text.encode()), second=second, whole=True)
