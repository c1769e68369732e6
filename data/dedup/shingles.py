"""Documents to sets of 64-bit shingle hashes, many documents at a time, on arrays.

A shingle is `size` consecutive words (a word: letters, digits, underscore and combining marks, lower-cased). Scripts
that are written without spaces (Han, kana, Thai, Lao, Khmer, Myanmar, Tibetan) count each character as a word.

How: the texts of a batch become one array of code points; a table says which are word characters; the hash of a word
is a polynomial over its characters modulo 2**64, taken for all words at once from running sums; the hash of a shingle
combines `size` word hashes and is mixed (MurmurHash3's finaliser). Nothing runs per word in Python.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal

import numpy as np

VERSION = 1

BATCH_CHARS = 1 << 18  # characters hashed together: the arrays of a batch then stay in the second-level cache
_CODE_POINTS = 0x110000
_BASE = 0x9E3779B97F4A7C15  # odd (2**64 / golden ratio): the base of the word polynomial
_STEP = 0xD1B54A32D192ED03  # odd: joins the words of a shingle (Steele, Vigna 2021, table of good multipliers)

# Unicode blocks of scripts written without spaces between words (Unicode 15, Scripts.txt)
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),  # Katakana extensions
    (0x3400, 0x4DBF),  # Han, extension A
    (0x4E00, 0x9FFF),  # Han
    (0xF900, 0xFAFF),  # Han, compatibility
    (0x20000, 0x3FFFF),  # Han, extensions B and later
)


@dataclass(frozen=True, kw_only=True)
class Shingles:
    """What a document is compared by.

    size: words (or characters) in one shingle. A document shorter than that is one shingle; one without any has none.
    unit: "words" (see above) or "characters": every word character counts as a word, for all scripts.
    """

    size: int = 5
    unit: Literal["words", "characters"] = "words"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"Shingles: size must be at least 1, got {self.size}")
        if self.unit not in ("words", "characters"):
            raise ValueError(f"Shingles: unit must be words or characters, got {self.unit!r}")


@dataclass(frozen=True, slots=True)
class HashedWords:
    """Word hashes of some documents in order: those of document i are hashes[starts[i] : starts[i + 1]]."""

    hashes: np.ndarray  # uint64
    starts: np.ndarray  # int64 [documents + 1]


@dataclass(frozen=True, slots=True)
class HashedShingles:
    """Shingle hashes of some documents: those of document i are values[starts[i] : starts[i + 1]]."""

    values: np.ndarray  # uint64
    starts: np.ndarray  # int64 [documents + 1]


def batches(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Cut a sequence of texts into ranges [start, stop) of about `BATCH_CHARS` characters."""
    start = size = 0
    for place, text in enumerate(texts):
        if size and size + len(text) > BATCH_CHARS:
            yield start, place
            start, size = place, 0
        size += len(text)
    if start < len(texts):
        yield start, len(texts)


def normal_form(text: str) -> str:
    """The text as its words are compared: Unicode NFC (what differs only in composition is equal), lower case."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFC", text).lower()


def hash_words(texts: Sequence[str], unit: str = "words") -> HashedWords:
    """The word hashes of a batch of texts. A long text is hashed in pieces, so memory is a few times the text."""
    forms = [normal_form(text) for text in texts]
    sizes = np.fromiter(map(len, forms), np.int64, len(forms))
    if sizes.sum() <= 2 * BATCH_CHARS:
        hashes, ends = _hash_text("\n".join(forms) + "\n", unit)
        return HashedWords(hashes, np.concatenate(([0], np.searchsorted(ends, np.cumsum(sizes + 1)))))
    parts = [[_hash_text(piece + "\n", unit)[0] for piece in _pieces(form)] for form in forms]
    counts = [sum(map(len, pieces)) for pieces in parts]
    return HashedWords(
        np.concatenate([hashes for pieces in parts for hashes in pieces]), np.concatenate(([0], np.cumsum(counts)))
    )


def hash_shingles(texts: Sequence[str], config: Shingles, *, whole_only: bool = False) -> HashedShingles:
    """The shingle hashes of a batch of texts, in text order, repeats included (see `unique_sorted`).

    A text of fewer than `config.size` words gives one shingle of all its words, or none when `whole_only`.
    """
    return join_words(hash_words(texts, config.unit), config.size, whole_only=whole_only)


def join_words(words: HashedWords, size: int, *, whole_only: bool = False) -> HashedShingles:
    """Hashes of every `size` consecutive words (see `hash_shingles`)."""
    hashes, starts = words.hashes, words.starts
    first, counts = starts[:-1], np.diff(starts)
    if not len(hashes):
        return HashedShingles(hashes, np.zeros_like(starts))
    joined = hashes.copy()
    step = np.uint64(_STEP)
    for offset in range(1, size):
        joined *= step
        joined[: max(len(hashes) - offset, 0)] += hashes[offset:]
    valid = np.ones(len(hashes), bool)
    for back in range(1, size):  # the last size - 1 words of a document begin no shingle
        valid[(starts[1:] - back)[counts >= back]] = False
    short = np.flatnonzero((counts > 0) & (counts < size) & (not whole_only))
    if len(short):
        valid[first[short]] = True
        joined[first[short]] = _join_short(hashes, first[short], counts[short], size)
    totals = np.maximum(counts - size + 1, (counts > 0) & (not whole_only))
    return HashedShingles(mix64(joined[valid]), np.concatenate(([0], np.cumsum(totals))))


def unique_sorted(shingles: HashedShingles) -> HashedShingles:
    """Each document's shingle hashes as a set: sorted, without repeats."""
    values, starts = shingles.values.copy(), shingles.starts
    bounds = starts.tolist()
    for start, stop in pairwise(bounds):
        values[start:stop].sort()
    new = np.ones(len(values), bool)
    new[1:] = values[1:] != values[:-1]
    new[starts[:-1][np.diff(starts) > 0]] = True
    before = np.concatenate(([0], np.cumsum(new)))
    return HashedShingles(values[new], before[starts])


def mix64(values: np.ndarray) -> np.ndarray:
    """MurmurHash3's 64-bit finaliser (Appleby 2011): a bijection that spreads every bit; uint64, in place."""
    values ^= values >> np.uint64(33)
    values *= np.uint64(0xFF51AFD7ED558CCD)
    values ^= values >> np.uint64(33)
    values *= np.uint64(0xC4CEB9FE1A85EC53)
    values ^= values >> np.uint64(33)
    return values


def _join_short(hashes: np.ndarray, first: np.ndarray, counts: np.ndarray, size: int) -> np.ndarray:
    joined = hashes[first]
    for offset in range(1, size - 1):
        longer = counts > offset
        joined[longer] = joined[longer] * np.uint64(_STEP) + hashes[first[longer] + offset]
    return joined


def _hash_text(text: str, unit: str) -> tuple[np.ndarray, np.ndarray]:
    """(hashes, ends) of the words of a text in normal form that ends in a separator."""
    codes, starts, ends = _find_words(text, unit)
    power, inverse = _powers(1 << max(len(codes), 2).bit_length())
    sums = np.empty(len(codes) + 1, np.uint64)
    sums[0] = 0
    values = codes.astype(np.uint64)
    values *= power[: len(codes)]
    np.cumsum(values, out=sums[1:])
    hashes = sums.take(ends)
    hashes -= sums.take(starts)
    hashes *= inverse.take(starts)
    return mix64(hashes), ends


def _find_words(text: str, unit: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(codes, starts, ends) of the words of a text that ends in a separator."""
    if text.isascii():
        raw = text.encode("latin-1")
        codes = np.frombuffer(raw, np.uint8)
        kinds = np.frombuffer(raw.translate(_classes()[:256].tobytes()), np.uint8)
    else:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        kinds = _classes().take(codes)
    single = kinds == 2 if unit == "words" else kinds > 0
    running = kinds == 1 if unit == "words" else np.zeros(len(kinds), bool)
    edges = np.flatnonzero(running[1:] != running[:-1]) + 1
    if running[0]:
        edges = np.concatenate(([0], edges))
    starts, ends = edges[::2], edges[1::2]
    if single.any():
        alone = np.flatnonzero(single)
        starts = np.sort(np.concatenate((starts, alone)))
        ends = np.sort(np.concatenate((ends, alone + 1)))
    return codes, starts, ends


def word_spans(text: str, unit: str = "words") -> tuple[np.ndarray, np.ndarray]:
    """(starts, ends), int64: where the words of a text lie in it."""
    return _find_words(text + "\n", unit)[1:]


def _pieces(text: str) -> Iterator[str]:
    """Cut a long text behind white space every `BATCH_CHARS` characters; within a word only where there is none."""
    start = 0
    while start < len(text):
        stop = start + BATCH_CHARS
        if stop < len(text):
            window = text[start:stop]
            space = max(window.rfind(" "), window.rfind("\n"))
            stop = start + space + 1 if space > 0 else stop
        yield text[start:stop]
        start = stop


@cache
def _classes() -> np.ndarray:
    """uint8 [code points]: 0 separates words, 1 is part of a word, 2 is a word by itself."""
    kinds = np.zeros(_CODE_POINTS, np.uint8)
    for code in range(_CODE_POINTS):
        char = chr(code)
        if char.isalnum() or char == "_" or (code > 0x2FF and unicodedata.category(char)[0] == "M"):
            kinds[code] = 1
    for first, last in _UNSPACED:
        block = kinds[first : last + 1]
        block[block == 1] = 2
    return kinds


@cache
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """uint64 [count] each: the powers of the base modulo 2**64 and their inverses."""
    inverse = pow(_BASE, -1, 1 << 64)
    return tuple(  # type: ignore[return-value]
        np.cumprod(np.concatenate((np.ones(1, np.uint64), np.full(count - 1, base, np.uint64))))
        for base in (_BASE, inverse)
    )
