"""English words and sentences, split as spaCy's blank English pipeline splits them.

The published filters were tuned with some word splitter in mind: datatrove counts spaCy tokens (`spacy.blank("en")` and
its sentencizer), so a filter that is to agree with it must split alike. These are the rules of spaCy 3 (MIT licence;
lang/punctuation.py, lang/en/punctuation.py, lang/en/tokenizer_exceptions.py) in another form: text is split at
whitespace, and each distinct chunk is taken apart once and remembered, because most chunks of a text were seen before.

Not carried over: rules that span whitespace, and emoticons beyond the usual ones.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from itertools import chain, product

import regex

VERSION = 1
_REMEMBERED_CHUNKS = 1 << 17  # distinct chunks remembered by a process: about 30 MB
_REMEMBERED_LENGTH = 64  # characters: longer chunks are not remembered

# Characters that stand alone at the start or the end of a word.
_OPEN_CLOSE = frozenset("…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪'\"”“`‘´’‚„»«「」『』（）〔〕【】《》〈〉〈〉⟦⟧")
_CURRENCY = frozenset("$£€¥฿₽﷼₴₠₡₢₣₤₥₦₧₨₩₪₫₭₮₯₰₱₲₳₵₶₷₸₹₺₻₼₾₿")
_PREFIXES = _OPEN_CLOSE | _CURRENCY | frozenset("§%=—–")
_SUFFIXES = _OPEN_CLOSE | frozenset("—–")
_PLAIN_ENDS = frozenset('.,;:!?)"”')
_DOTS = regex.compile(r"\.\.+")
_PREFIX_CURRENCY = regex.compile(r"(?:US|C|A)\$")
_UNITS = (
    "km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph hPa Pa "
    "mbar mb MB kb KB gb GB tb TB T G M K %"
)
_AFTER_DIGIT = regex.compile(
    r"(?<=[0-9])(?:\+|US\$|[CA]\$|[{}]|{})$".format(
        "".join(sorted(_CURRENCY)), "|".join(sorted(_UNITS.split(), key=len, reverse=True))
    )
)
_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉〈〉⟦⟧"
_LAST_DOT = regex.compile(
    rf"(?:(?<=[0-9\p{{Ll}}\p{{Lo}}%²\-+…,:;!?¿؟¡()\[\]{{}}<>_#*&。？！，、；：～·।،۔؛٪{_QUOTES}])"
    r"|(?<=[\p{Lu}\p{Lo}][\p{Lu}\p{Lo}]))\.$"
)
_INFIX = regex.compile(
    r"\.\.+|…|\p{So}"
    r"|(?<=[0-9])[+\-*^](?=[0-9-])"
    rf"|(?<=[\p{{Ll}}\p{{Lo}}{_QUOTES}])\.(?=[\p{{Lu}}\p{{Lo}}{_QUOTES}])"
    r"|(?<=\p{L}),(?=\p{L})"
    r"|(?<=[\p{L}0-9])(?:-|–|—|--|---|——|~)(?=\p{L})"
    r"|(?<=[\p{L}0-9])[:<>=/](?=\p{L})"
)
# A web address is one word. No nested repetition: one pass over the host, then anything that is no space.
_URL = regex.compile(
    r"(?:[\w+\-.]{2,}://)?(?:[^\s@/]+@)?(?:(?:[A-Za-z0-9\u00a1-\uffff][\w\u00a1-\uffff-]*+\.)++[\p{Ll}\p{Lo}]{2,63}"
    r"|[0-9]{1,3}(?:\.[0-9]{1,3}){3})(?::[0-9]{2,5})?(?:[/?#]\S*)?"
)
SENTENCE_END = frozenset(
    "!.?։؟۔܀܁܂߹।॥၊။።፧፨᙮᜵᜶᠃᠉᥄᥅᪨᪩᪪᪫᭚᭛᭞᭟᰻᰼᱾᱿‼‽⁇⁈⁉⸮⸼꓿꘎꘏꛳꛷꡶꡷꣎꣏꤯꧈꧉꩝꩞꩟꫰꫱꯫﹒﹖﹗！．？𐩖𐩗𑁇𑁈𑂾𑂿𑃀𑃁𑅁𑅂𑅃𑇅𑇆𑇍𑇞𑇟"
    "𑈸𑈹𑈻𑈼𑊩𑑋𑑌𑗂𑗃𑗉𑗊𑗋𑗌𑗍𑗎𑗏𑗐𑗑𑗒𑗓𑗔𑗕𑗖𑗗𑙁𑙂𑜼𑜽𑜾𑩂𑩃𑪛𑪜𑱁𑱂𖩮𖩯𖫵𖬷𖬸𖭄𛲟𝪈｡。"
)


def _contractions() -> dict[str, tuple[str, ...]]:
    """Words that are split although no punctuation stands between their parts: "don't" and "cannot"."""
    rules: list[tuple[str, ...]] = []

    def add(stems: str, tails: Iterable[tuple[str, ...]]) -> None:
        for stem, tail in product(stems.split(), tails):
            rules.extend((first, *tail) for first in (stem, stem.title()))

    def not_(stems: str, *more: tuple[str, ...]) -> None:
        add(stems, [("n't",), *more])

    add("i", [("'m",), ("'m", "a")])
    add("i you he she it we they", [("'ll",), ("'ll", "'ve"), ("'d",), ("'d", "'ve")])
    add("i you we they", [("'ve",)])
    add("you we they", [("'re",)])
    add("he she it who what when where why how there that this", [("'s",)])
    add("who what when where why how there that this these those", [("'ll",), ("'ll", "'ve"), ("'d",), ("'d", "'ve")])
    add("who what when where why how there these those", [("'re",), ("'ve",)])
    not_("ca could do does did had may might must need ought sha should wo would", ("n't", "'ve"))
    not_("ai are is was were have has dare")
    add("could might must should would", [("'ve",)])
    split = {"".join(parts): parts for parts in rules}
    split |= {"".join(parts).replace("'", ""): tuple(part.replace("'", "") for part in parts) for parts in rules}
    for word in ["ill", "its", "hell", "shell", "shed", "were", "well", "whore"]:
        split.pop(word, None)
        split.pop(word.title(), None)
    for parts in ["y' all", "y all", "how 'd 'y", "not 've", "can not", "gon na", "got ta", "let 's", "c'm on"]:
        for first in (parts, parts[0].upper() + parts[1:]):
            split[first.replace(" ", "")] = tuple(first.split())
    split |= {f"{hour}{half}": (str(hour), half) for hour in range(1, 13) for half in ("a.m.", "am", "p.m.", "pm")}
    return split | {word.replace("'", "’"): tuple(p.replace("'", "’") for p in parts) for word, parts in split.items()}


_WHOLE = (
    "' '' a.m. p.m. Adm. Bros. co. Co. Corp. D.C. Dr. e.g. E.g. E.G. Gen. Gov. i.e. I.e. I.E. Inc. Jr. Ltd. Md. "
    "Messrs. Mo. Mont. Mr. Mrs. Ms. Ph.D. Prof. Rep. Rev. Sen. St. vs. v.s. Mt. Ak. Ala. Apr. Ariz. Ark. Aug. "
    "Calif. Colo. Conn. Dec. Del. Feb. Fla. Ga. Ia. Id. Ill. Ind. Jan. Jul. Jun. Kan. Kans. Ky. La. Mar. Mass. "
    "Mich. Minn. Miss. N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr. Nev. Nov. Oct. Okla. Ore. Pa. S.C. Sep. Sept. "
    "Tenn. Va. Wash. Wis. C++ and/or w/o 's 'S 're 'd 'em 'll 'nuff 'Cause 'cause 'cos 'Cos 'coz 'Coz 'cuz 'Cuz "
    "'bout ma'am Ma'am o'clock O'clock lovin' Lovin' havin' Havin' doin' Doin' goin' Goin' nothin' Nothin' "
    "nuthin' Nuthin' ol' Ol' somethin' Somethin' :) :-) :)) :( :-( ;) ;-) :/ :-/ :D :-D :P :-P :p :-p :o :-o :O "
    ":-O :| :-| :* :-* <3 <33 </3 xD XD =) =( =D ^_^ -_- o_o O_o o.O :'( :'-( 8) 8-) (: (; (= ): )-: :3 :] :[ :} "
    ":> :x :X :1 :0 =/ =| =3 =] [: [= ]= >:( >.< ä. ö. ü. — "
)
SPECIALS: dict[str, tuple[str, ...]] = {
    **{word: (word,) for word in _WHOLE.split()},
    **{word.replace("'", "’"): (word.replace("'", "’"),) for word in _WHOLE.split() if "'" in word},
    **{f"{letter}.": (f"{letter}.",) for letter in "abcdefghijklmnopqrstuvwxyz"},
    **_contractions(),
}


class _Memory(dict[str, tuple[str, ...]]):
    """chunk -> its words, computed when first asked for; forgets everything when full, so that its size is bounded."""

    def __missing__(self, chunk: str) -> tuple[str, ...]:
        words = _split(chunk)
        if len(chunk) <= _REMEMBERED_LENGTH:
            if len(self) >= _REMEMBERED_CHUNKS:
                self.clear()
            self[chunk] = words
        return words


_words_of = _Memory().__getitem__


def split_words(chunks: Iterable[str]) -> list[str]:
    """The words of whitespace-separated chunks: `["(don't!)"]` gives `["(", "do", "n't", "!", ")"]`."""
    return list(chain.from_iterable(map(_words_of, chunks)))


def count_sentences(chunks: Iterable[str], enough: int = 1 << 60) -> int:
    """Sentences in whitespace-separated chunks as spaCy's sentencizer counts them, up to `enough`.

    A new sentence starts at the first word after an end mark; marks and punctuation that follow an end mark belong to
    the sentence before. No words are no sentence.
    """
    count, ended = 0, True
    for chunk in chunks:
        if chunk.isalnum():
            count += ended
            ended = False
            continue
        for word in _words_of(chunk):
            if word in SENTENCE_END:
                count += count == 0
                ended = True
            elif ended and not (count and is_punctuation(word)):
                count += 1
                ended = False
        if count >= enough:
            break
    return count


def is_punctuation(word: str) -> bool:
    """Whether every character is punctuation in Unicode's sense."""
    return not word[0].isalnum() and all(unicodedata.category(c)[0] == "P" for c in word)


def _split(chunk: str) -> tuple[str, ...]:
    known = SPECIALS.get(chunk)
    if known is not None:
        return known
    head, last = chunk[:-1], chunk[-1]
    if chunk.isalpha():
        return (chunk,)
    if last in _PLAIN_ENDS and head.isalpha() and head not in SPECIALS and (last != "." or head[-1].islower()):
        return (head, last)  # the usual case, "word," and "word.", found without the general rules
    rest, prefixes, suffixes = _strip(chunk)
    if not prefixes and not suffixes:
        return _core(rest)
    return _merged((*prefixes, *_core(rest), *reversed(suffixes)))


def _merged(words: tuple[str, ...]) -> tuple[str, ...]:
    """Neighbours that are one known word together, as "):" and "''" are, put together again."""
    out: list[str] = []
    for word in words:
        both = out[-1] + word if out else ""
        if 2 <= len(both) <= 3 and SPECIALS.get(both) == (both,):
            out[-1] = both
        else:
            out.append(word)
    return tuple(out)


def _strip(chunk: str) -> tuple[str, list[str], list[str]]:
    """(what is left, prefixes in order, suffixes from the end): affixes come off until nothing more does."""
    prefixes: list[str] = []
    suffixes: list[str] = []
    start, end, last = 0, len(chunk), -1
    while start < end and end - start != last and (end - start > 12 or chunk[start:end] not in SPECIALS):
        last = end - start
        before = _prefix_length(chunk, start)
        if before and start + before < end and end - start < 14 and chunk[start + before : end] in SPECIALS:
            prefixes.append(chunk[start : start + before])
            start += before
            break
        after = _suffix_length(chunk, start + before, end)
        if after and end - start < 14 and chunk[start : end - after] in SPECIALS:
            suffixes.append(chunk[end - after : end])
            end -= after
            break
        if before:
            prefixes.append(chunk[start : start + before])
            start += before
        if after:
            suffixes.append(chunk[end - after : end])
            end -= after
    return chunk[start:end], prefixes, suffixes


def _prefix_length(chunk: str, start: int) -> int:
    first = chunk[start]
    if first in _PREFIXES:
        return 1
    if first == ".":
        dots = _DOTS.match(chunk, start)
        return dots.end() - start if dots else 0
    if first == "+":
        return int(not chunk[start + 1 : start + 2].isdigit())
    if first in "UCA":
        currency = _PREFIX_CURRENCY.match(chunk, start)
        return currency.end() - start if currency else 0
    return int(first > "\x7f" and unicodedata.category(first) == "So")


def _suffix_length(chunk: str, start: int, end: int) -> int:
    if start >= end:
        return 0
    last = chunk[end - 1]
    if last.isalnum() or last in "+%²³":
        if last in "sS" and end - start >= 2 and chunk[end - 2] in "'’":
            return 2
        tail = chunk[max(start, end - 6) : end]  # longer than any unit and its digit
        found = None if tail.isalpha() else _AFTER_DIGIT.search(tail)
        return found.end() - found.start() if found else 0
    if last in _SUFFIXES:
        return 1
    if last == ".":
        dots = end
        while dots > start and chunk[dots - 1] == ".":
            dots -= 1
        if end - dots >= 2:
            return end - dots
        return int(_LAST_DOT.search(chunk[max(start, end - 3) : end]) is not None)
    if last in _CURRENCY:
        found = _AFTER_DIGIT.search(chunk[max(start, end - 6) : end])
        return found.end() - found.start() if found else 0
    return int(last > "\x7f" and unicodedata.category(last) == "So")


def _core(rest: str) -> tuple[str, ...]:
    if not rest:
        return ()
    if len(rest) <= 12 and rest in SPECIALS:
        return SPECIALS[rest]
    if rest.isalnum() or _URL.fullmatch(rest):
        return (rest,)
    parts: list[str] = []
    start = 0
    for match in _INFIX.finditer(rest):
        if match.start() == 0:
            continue
        if match.start() > start:
            parts.append(rest[start : match.start()])
        parts.append(match.group())
        start = match.end()
    if start < len(rest):
        parts.append(rest[start:])
    return tuple(parts)
