"""What a copy must not change: names and numbers, found by how they are written.

A word with a capital inside a sentence is a name. One that begins a sentence may be any word: it is an opener, and
whoever compares two texts takes it for a name where nothing speaks against it. Numbers are compared by their value, so
that "twelve", "12" and "1,250" are what they say; "one" stands for so much else that it is told apart.
"""

from __future__ import annotations

import re
from collections import Counter

from data.augment.technique import WORD, starts_sentence

VERSION = 1
_BELOW_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_VALUES = {
    **{word: value for value, word in enumerate(_BELOW_TWENTY.split())},
    **{word: 10 * value for value, word in enumerate(_TENS.split(), start=2)},
}
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
_WORD = f"(?:{'|'.join((*_VALUES, *_SCALES))})\\b"
_AND = "|".join(rf"(?<={scale})\sand\s" for scale in _SCALES)
NUMBER = re.compile(
    rf"(?P<digits>\d+(?:[.,:/]\d+)*)(?:\s(?P<scale>{'|'.join(_SCALES)})\b)?|\b(?P<words>{_WORD}(?:(?:[\s-]|{_AND}){_WORD})*)",
    re.IGNORECASE,
)
ONE = "one"  # the key of a "one" by itself, which may be a number or not
# Words that begin sentences and are no names, beside those that the two texts hold in small letters: the commonest of
# English, and what a paraphrase in questions or instructions adds.
_OPENERS = """
a about above according across actually after again against ago all almost alone along already also although
altogether always am among an and another answer any anybody anyone anything anyway apparently are as aside at away
back based be because been before behind being below beneath beside besides between beyond both but by can certainly
clearly come compared consequently considering could currently despite did do does doing don't down due during each
earlier early easily either else elsewhere especially even eventually ever every everybody everyone everything
everywhere exactly example except fact few finally first firstly following for formerly fortunately four from full
further furthermore generally get given go had half hardly has have having he hence her here hers herself him himself
his how however hundreds i if imagine in indeed initially inside instead instruction into is isn't it it's its itself
just know last lastly lately later least less let let's like likely likewise little long look luckily made mainly make
many maybe me meanwhile moreover most mostly much must my myself naturally near nearly neither never nevertheless next
no nobody none nonetheless nor not nothing now nowadays nowhere obviously occasionally of off often oh on once one
only onto opposite or originally other others otherwise our ours out outside over overall own part particularly past
people perhaps please plus possibly presumably previously probably put question quite rarely rather read really
recently regarding regardless remember response right same second secondly see seldom several shall she should
similarly simply since so some somebody somehow someone something sometimes somewhere soon still strangely such
suddenly sure surely surprisingly take ten than thank thanks that that's the their theirs them themselves then there
thereafter therefore these they they're thing things think third this those though thousands three through throughout
thus till to today together tomorrow tonight too toward towards traditionally true two typically ultimately under
undoubtedly unfortunately unless unlike until up upon us use used using usually various very was wasn't we we're well
were what what's whatever when whenever where whereas wherever whether which whichever while who whoever whole whom
whose why will with within without won't would yes yesterday yet you your yours yourself
"""
OPENERS = frozenset(_OPENERS.split())


def names(text: str) -> set[str]:
    """Words that are written with a capital inside a sentence, or hold two: names, places, acronyms."""
    return _capitals(text)[0]


def openers(text: str) -> set[str]:
    """Words that begin a sentence with their only capital, but for those that no name is spelled like."""
    return _capitals(text)[1]


def _capitals(text: str) -> tuple[set[str], set[str]]:
    inside, first = set(), set()
    for match in WORD.finditer(text):
        word = match.group()
        if word[0].isupper() and word != "I" and not word.startswith(("I'", "I’")):
            several = len(word) > 1 and any(letter.isupper() for letter in word[1:])
            if several or not starts_sentence(text, match.start()):
                inside.add(_bare(word))
            elif len(word) > 1 and word.lower().replace("’", "'") not in OPENERS and word.lower() not in _VALUES:
                first.add(_bare(word))
    return inside, first


def _bare(word: str) -> str:
    """A name without the ending of a possessive."""
    return word[:-2] if word.endswith(("'s", "’s")) else word


def numbers(text: str) -> Counter[str]:
    """How often each number occurs, in digits or in words: "1250" for "1,250" and "twelve hundred and fifty"."""
    found: Counter[str] = Counter()
    for match in NUMBER.finditer(text):
        digits, scale, spelled = match.group("digits", "scale", "words")
        if spelled is not None:
            found[_value(spelled)] += 1
        elif scale is None:
            found[digits.replace(",", "")] += 1
        else:
            found[_scaled(digits.replace(",", ""), _SCALES[scale.lower()])] += 1
    return found


def _value(spelled: str) -> str:
    listed = [word for word in re.split(r"[\s-]+", spelled.lower()) if word != "and"]
    if listed == ["one"]:
        return ONE
    total = current = 0
    for word in listed:
        if word in _VALUES:
            current += _VALUES[word]
        elif word == "hundred":
            current = 100 * max(1, current)
        else:
            total += _SCALES[word] * max(1, current)
            current = 0
    return str(total + current)


def _scaled(digits: str, scale: int) -> str:
    try:
        value = float(digits) * scale
    except ValueError:  # a date or a time, say
        return f"{digits} {scale}"
    return str(int(value)) if value == int(value) else str(value)


def changed_numbers(before: Counter[str], after: Counter[str]) -> tuple[list[str], list[str]]:
    """(numbers that are gone, numbers that are new), as often as that. A "one" may stand for 1 or for nothing."""
    gone, new = before - after, after - before
    ones = {ONE: 0, "1": 0}
    gone, new = (Counter({n: c for n, c in side.items() if n not in ones}) for side in (gone, new))
    gone["1"], new["1"] = (max(0, a["1"] - b["1"] - b[ONE]) for a, b in ((before, after), (after, before)))
    return sorted(gone.elements()), sorted(new.elements())
