"""The text that a tokenizer is trained on: a bounded sample of the training documents, cut into chunks."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from pathlib import Path

import xxhash

from data.tables import read_documents

SPACE = "▁"  # U+2581, how SentencePiece writes a space while it trains
CHUNK_CHARS = 4096  # characters: documents are cut into chunks of this size, before line breaks or spaces
DOCUMENT_SHARE = 16  # one document gives at most 1/16 of the sample
# Characters that SentencePiece reserves while training: NUL, its space, its unknown mark (U+2585). A tab never becomes
# part of a longer piece, so it stands in for them.
RESERVED = str.maketrans({"\0": "\t", SPACE: "\t", "▅": "\t"})


def sample_texts(shards: Iterable[Path], sample_bytes: int, seed: int) -> list[str]:
    """Texts of training documents (meta split "train", or none), up to `sample_bytes` UTF-8 bytes in all.

    Documents with the smallest hash of (seed, id) are taken, in that order: the choice does not depend on how documents
    are spread over shards, and memory stays near `sample_bytes` for input of any size.
    """
    heap: list[tuple[int, str, str, int]] = []  # (-hash, id, text, bytes): the largest hash on top
    total = 0
    for shard in shards:
        for document in read_documents(shard):
            if document.meta.get("split", "train") != "train" or not document.text:
                continue
            key = xxhash.xxh64_intdigest(document.id.encode(), seed)
            if total >= sample_bytes and -key <= heap[0][0]:
                continue
            text = document.text[: max(sample_bytes // DOCUMENT_SHARE, CHUNK_CHARS)]
            size = len(text.encode())
            heapq.heappush(heap, (-key, document.id, text, size))
            total += size
            while total - heap[0][3] >= sample_bytes:
                total -= heapq.heappop(heap)[3]
    return [text for _, _, text, _ in sorted(heap, key=lambda item: (-item[0], item[1]))]


def training_chunks(text: str) -> Iterator[str]:
    """Cut a text into pieces for the trainer, before line breaks where there are some: it strips those at an end."""
    text = text.translate(RESERVED)
    start = 0
    while start < len(text):
        stop = start + CHUNK_CHARS
        if stop < len(text):
            newline = text.rfind("\n", start + 1, stop)
            stop = newline if newline > 0 else stop
        yield text[start:stop]
        start = stop
