"""What filters need to know of a text, computed once per document and shared between them.

Every attribute is computed when it is first asked for. Words become small integers, and n-grams 64-bit hashes of those,
as numpy arrays: repetition statistics compare numbers and never join strings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np

from data.english import split_words

VERSION = 3
T = TypeVar("T")

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd and without pattern (2^64 / golden ratio): the base of the rolling hash
_LETTER = re.compile(r"[^\W\d_]")
_LINE_BREAKS = re.compile(r"\n+")
_PARAGRAPH_BREAKS = re.compile(r"\n{2,}")


# Marks that end a sentence in any script: datatrove 0.10, utils/text.py, TERMINAL_PUNCTUATION.
SENTENCE_ENDS = frozenset(
    "᪩？⁈𑩂．꩞𑅃﹗𑂾\u1b7d፧𑅂꡶꘎⁉࠾᪨𑊩𑱂᱿𖩮᥅\U00011f43\U00011f44﹒𑈹𑈸።܂؞꛳\U00010f88𑗍𐩖𑙂\u061d꩟᠉\u1b7e𑗗᰼𑻸؟𑪜꧉𑗉𐽙𖫵𖬷܀꓿᜵𑗏𑁇𑗓𑥄៖"
    "𑥆𑗑𑗒꯫۔𐩗\U00010f86꡷\u2e54｡៕߹⸮.𑇅࠹𛲟꫰꤯𐽗᭞𑜼፨𑃁꣏𑇟𖬸𑪛𑜾࠷𝪈?𑃀𑗃！։꣎॥𑗖᭛᠃!၊𖺘⁇𑗌𑑋𖭄᭟𑅁𑙁⸼꩝𑗋。꧈꫱𑜽𐽖𑂿᙮។꛷"
    "\U00010f89៚᥄𑗕𑗎᪪᭚࠽𑇞𑗊𐽘\u2e53𑗔𖩯𑇍𑻷𐽕𑩃।𑗂𑇆𑁈။᱾𑱁꘏܁᜶‼𑈻‽᪫﹖𑑌𑈼\U00010f87𑗐៙᰻"
)
# What counts as a symbol and not a word: datatrove 0.10, utils/text.py, PUNCTUATION (its fullwidth 1 included), with
# the control characters, and the sentence ends of all scripts.
_MARKS = (
    "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»"
    + "".join(map(chr, [*range(0, 9), *range(11, 32), *range(127, 160)]))
    + "".join(sorted(SENTENCE_ENDS))
)
_MARK_SET = frozenset(_MARKS)


class lazy(Generic[T]):
    """`functools.cached_property` without its lock: a quarter of the time of a document went into that."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self.compute = compute
        self.name = compute.__name__
        self.__doc__ = compute.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> lazy[T]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> T | lazy[T]:
        if instance is None:
            return self
        value = instance.__dict__[self.name] = self.compute(instance)
        return value


class Words:
    """A sequence of words and its n-grams, each computed once."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words
        self._hashes: dict[int, np.ndarray] = {}
        self._groups: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self._duplicated: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.words)

    @lazy
    def lengths(self) -> np.ndarray:
        """int64 [words]: characters of each word."""
        return np.fromiter(map(len, self.words), np.int64, len(self.words))

    @lazy
    def ends(self) -> np.ndarray:
        """int64 [words + 1]: characters before word i, so that an n-gram's length is a difference."""
        ends = np.zeros(len(self.words) + 1, np.int64)
        np.cumsum(self.lengths, out=ends[1:])
        return ends

    @lazy
    def char_count(self) -> int:
        return int(self.ends[-1])

    def hashes(self, n: int) -> np.ndarray:
        """uint64 [max(0, words - n + 1)]: equal where the n-grams that start there are equal.

        Differs from process to process as str hashes do; only equality within a document is ever used.
        """
        known = self._hashes.get(n)
        if known is None:
            if n == 1:
                known = np.fromiter(map(hash, self.words), np.int64, len(self.words)).view(np.uint64)
            else:
                known = self.hashes(n - 1)[:-1] * _BASE + self.hashes(1)[n - 1 :]
            self._hashes[n] = known
        return known

    def groups(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Equal n-grams side by side: (places sorted by n-gram, where each group starts, how many it holds)."""
        known = self._groups.get(n)
        if known is None:
            hashes = self.hashes(n)
            order = hashes.argsort()
            ordered = hashes[order]
            bounds = np.concatenate((_ZERO, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, (len(hashes),)))
            starts = bounds[:-1]
            known = self._groups[n] = order, starts, bounds[1:] - starts
        return known

    def repeats(self, n: int) -> bool:
        """Whether any n-gram occurs twice; none does where no (n - 1)-gram does."""
        total = len(self.words) - n + 1
        if total < 2 or (n - 1 in self._groups and not self.repeats(n - 1)):
            return False
        return len(self.groups(n)[1]) < total

    def top_ngram(self, n: int) -> tuple[int, int]:
        """(characters of the words, occurrences) of the most frequent n-gram, the first of equals; (0, 0) for none."""
        if len(self.words) < n:
            return 0, 0
        start, count = 0, 1
        if self.repeats(n):
            order, starts, counts = self.groups(n)
            count = int(counts.max())
            start = int(np.minimum.reduceat(order, starts)[counts == count].min())
        return int(self.ends[start + n] - self.ends[start]), count

    def longest_top_ngram(self, n: int) -> tuple[int, int]:
        """As `top_ngram`, but the longest of equals; (0, 0) where nothing repeats."""
        if not self.repeats(n):
            return 0, 0
        order, starts, counts = self.groups(n)
        count = int(counts.max())
        places = order[starts[counts == count]]
        return int((self.ends[places + n] - self.ends[places]).max()), count

    def repeated(self, n: int) -> np.ndarray:
        """int64: the places, in order, of n-grams that occur more than once, their first occurrence too."""
        if not self.repeats(n):
            return np.zeros(0, np.int64)
        order, _, counts = self.groups(n)
        return np.sort(order[np.repeat(counts > 1, counts)])

    def duplicated_chars(self, n: int) -> int:
        """Characters in n-grams that occurred before, counted without overlap: a repeat is skipped whole."""
        known = self._duplicated.get(n)
        if known is None:
            places = self.repeated(n)
            seen: set[int] = set()
            known = free = 0
            # Only n-grams that occur twice can count, so only their places are walked.
            chars = self.ends[places + n] - self.ends[places]
            for place, key, size in zip(places.tolist(), self.hashes(n)[places].tolist(), chars.tolist()):
                if place < free:
                    continue
                if key in seen:
                    known += size
                    free = place + n
                else:
                    seen.add(key)
            self._duplicated[n] = known
        return known


_ZERO = np.zeros(1, np.int64)


class Features:
    """Lazy views of one text. `text` never changes: another text has other features."""

    def __init__(self, text: str) -> None:
        self.text = text

    @lazy
    def chunks(self) -> list[str]:
        """The text split at whitespace: words with their punctuation."""
        return self.text.split()

    @lazy
    def spaced(self) -> Words:
        """`chunks` with their n-grams."""
        return Words(self.chunks)

    @lazy
    def english(self) -> Words:
        """Words and punctuation marks as spaCy's English rules split them."""
        return Words(split_words(self.chunks))

    @lazy
    def odd_words(self) -> list[str]:
        """The English words that are not letters only."""
        return [word for word in self.english.words if not word.isalpha()]

    @lazy
    def symbols(self) -> list[str]:
        """Those of the English words that consist of punctuation and control characters only."""
        return [word for word in self.odd_words if word in _MARK_SET or not word.strip(_MARKS)]

    @lazy
    def content(self) -> Words:
        """The English words without the symbols."""
        symbols = set(self.symbols)
        return Words([word for word in self.english.words if word not in symbols])

    @lazy
    def alphabetic_words(self) -> int:
        """How many of the English words hold a letter."""
        return len(self.english.words) - len(self.odd_words) + _with_letter(self.odd_words)

    @lazy
    def alphabetic_chunks(self) -> int:
        """How many of the whitespace-separated words hold a letter."""
        return _with_letter(self.chunks)

    @lazy
    def lines(self) -> list[str]:
        """Lines as `str.splitlines` gives them."""
        return self.text.splitlines()

    @lazy
    def newline_lines(self) -> list[str]:
        """Text between runs of newlines; the first and the last may be empty."""
        return _LINE_BREAKS.split(self.text)

    @lazy
    def filled_lines(self) -> list[str]:
        """Lines between newlines that hold more than whitespace."""
        return [line for line in self.text.split("\n") if line and not line.isspace()]

    @lazy
    def paragraphs(self) -> list[str]:
        """Text between blank lines, the text's own ends stripped."""
        return _PARAGRAPH_BREAKS.split(self.text.strip())

    @lazy
    def newline_duplicates(self) -> tuple[int, int]:
        return duplicates(self.newline_lines)

    @lazy
    def filled_duplicates(self) -> tuple[int, int]:
        return duplicates(self.filled_lines)

    @lazy
    def paragraph_duplicates(self) -> tuple[int, int]:
        return duplicates(self.paragraphs)

    @lazy
    def alphabetic(self) -> int:
        """How many characters are letters."""
        return len(_LETTER.findall(self.text))

    @lazy
    def lower(self) -> str:
        return self.text.lower()


def duplicates(pieces: Sequence[str]) -> tuple[int, int]:
    """(pieces, characters) that occurred before: repeats after the first occurrence."""
    if len(set(pieces)) == len(pieces):
        return 0, 0
    seen: set[str] = set()
    count = chars = 0
    for piece in pieces:
        if piece in seen:
            count += 1
            chars += len(piece)
        else:
            seen.add(piece)
    return count, chars


def _with_letter(words: Sequence[str]) -> int:
    search = _LETTER.search
    return sum(1 for word in words if word not in _MARK_SET and search(word))
