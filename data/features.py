"""What filters need to know of a text, computed once per document and shared between them.

Every attribute is computed when it is first asked for. Repeated n-grams are found by telling apart the places of
repeated (n - 1)-grams, so nothing is joined or hashed but the words themselves: for documents of a few hundred words
that is several times faster than n-gram hashes in numpy arrays, whose calls cost more than the work in them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any, Generic, TypeVar, overload

from data.english import split_words

VERSION = 1
T = TypeVar("T")

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
    """A sequence of words and its repeated n-grams, each computed once."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words
        self._repeated: dict[int, list[list[int]]] = {}

    def __len__(self) -> int:
        return len(self.words)

    @lazy
    def ends(self) -> list[int]:
        """[words + 1]: characters before word i, so that an n-gram's length is a difference."""
        return list(accumulate(map(len, self.words), initial=0))

    @lazy
    def char_count(self) -> int:
        """Characters of all words, without what parts them."""
        return self.ends[-1]

    def repeated(self, n: int) -> list[list[int]]:
        """The places of each n-gram, n >= 2, that occurs more than once, in order.

        An n-gram repeats only where its first n - 1 words do, so each step looks only at the places that are left, and
        tells them apart by one more word. Ordinary text has few of them from n = 3 on.
        """
        known = self._repeated.get(n)
        if known is None:
            known = _repeated_pairs(self.words) if n == 2 else _refined(self.repeated(n - 1), self.words, n - 1)
            self._repeated[n] = known
        return known

    def top_ngram(self, n: int) -> tuple[int, int]:
        """(characters of the words, occurrences) of the most frequent n-gram, the first of equals; (0, 0) for none."""
        if len(self.words) < n:
            return 0, 0
        start, count = 0, 1
        groups = self.repeated(n)
        if groups:
            count = max(map(len, groups))
            start = min(places[0] for places in groups if len(places) == count)
        return self.ends[start + n] - self.ends[start], count

    def longest_top_ngram(self, n: int) -> tuple[int, int]:
        """As `top_ngram`, but the longest of equals; (0, 0) where nothing repeats."""
        groups = self.repeated(n)
        if not groups:
            return 0, 0
        count, ends = max(map(len, groups)), self.ends
        return max(ends[places[0] + n] - ends[places[0]] for places in groups if len(places) == count), count

    def repeated_places(self, n: int) -> list[int]:
        """Where the n-grams start that occur more than once, their first occurrence too, in order."""
        return sorted(chain.from_iterable(self.repeated(n)))

    def duplicated_chars(self, n: int) -> int:
        """Characters in n-grams that occurred before, counted without overlap: a repeat is skipped whole."""
        groups = self.repeated(n)
        if not groups:
            return 0
        ends = self.ends
        seen: set[int] = set()
        chars = free = 0
        for place, kind in sorted((place, kind) for kind, places in enumerate(groups) for place in places):
            if place < free:
                continue
            if kind in seen:
                chars += ends[place + n] - ends[place]
                free = place + n
            else:
                seen.add(kind)
        return chars


def _repeated_pairs(words: Sequence[str]) -> list[list[int]]:
    """Places of each pair of neighbours that occurs more than once, each group in order."""
    first: dict[tuple[str, str], int] = {}
    firsts = list(map(first.setdefault, pairwise(words), range(len(words))))
    if len(first) == len(firsts):
        return []
    groups: dict[int, list[int]] = {}
    for place, earliest in enumerate(firsts):
        if place != earliest:
            if earliest in groups:
                groups[earliest].append(place)
            else:
                groups[earliest] = [earliest, place]
    return list(groups.values())


def _refined(groups: list[list[int]], words: Sequence[str], offset: int) -> list[list[int]]:
    """Groups of places told apart by the word `offset` further on; places that have none are left out."""
    last = len(words) - offset
    out: list[list[int]] = []
    for places in groups:
        if places[-1] >= last:
            places = [place for place in places if place < last]
        if len(places) == 2:
            if words[places[0] + offset] == words[places[1] + offset]:
                out.append(places)
        elif places:
            apart: dict[str, list[int]] = {}
            for place in places:
                word = words[place + offset]
                if word in apart:
                    apart[word].append(place)
                else:
                    apart[word] = [place]
            out.extend(group for group in apart.values() if len(group) > 1)
    return out


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
        return _LINE_BREAKS.split(self.text) if "\n\n" in self.text else self.text.split("\n")

    @lazy
    def filled_lines(self) -> list[str]:
        """Lines between newlines that hold more than whitespace."""
        return [line for line in self.text.split("\n") if line and not line.isspace()]

    @lazy
    def paragraphs(self) -> list[str]:
        """Text between blank lines, the text's own ends stripped."""
        return _PARAGRAPH_BREAKS.split(self.text.strip()) if "\n\n" in self.text else [self.text.strip()]

    @lazy
    def newline_duplicates(self) -> tuple[int, int]:
        """(lines, characters) of `newline_lines` that occurred before."""
        return duplicates(self.newline_lines)

    @lazy
    def filled_duplicates(self) -> tuple[int, int]:
        """(lines, characters) of `filled_lines` that occurred before."""
        return duplicates(self.filled_lines)

    @lazy
    def paragraph_duplicates(self) -> tuple[int, int]:
        """(paragraphs, characters) that occurred before."""
        return duplicates(self.paragraphs)

    @lazy
    def alphabetic(self) -> int:
        """How many characters are letters."""
        return len(_LETTER.findall(self.text))

    @lazy
    def lower(self) -> str:
        """The text in small letters."""
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
    return len([word for word in words if word not in _MARK_SET and search(word)])
