"""Synonym replacement: some words of a text by WordNet synonyms of the same part of speech, in the same inflection.

Names, numbers, stop words, capitalised words and words of more than one usual sense are left. English is inflected by
`lemminflect`; in other languages only words that stand in their dictionary form are replaced.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

from data.augment.sentences import is_prose, paragraphs, sentences
from data.augment.tagger import Tagger, load_tagger
from data.augment.technique import WORD, Request, chance, other_language
from data.augment.wordnet import Synonyms as Table
from data.augment.wordnet import files_key, load_omw, load_wordnet
from data.document import Drop

VERSION = 2
# Articles and the like that change before a vowel: of English, French, Italian, Catalan.
_BEFORE_VOWELS = frozenset(["a", "al", "alla", "an", "au", "ce", "cet", "che", "de", "del", "della", "di", "du"]) | {
    *["el", "il", "je", "la", "le", "lo", "ma", "ne", "que", "sa", "se", "ta", "un", "una", "uno"]
}
_PARTS = {"NOUN": "n", "VERB": "v", "ADJ": "a", "ADV": "r"}
# Words that WordNet has in some sense and that stand for another thing in most sentences.
_STOP_WORDS = """
a about above after again all also am an and any are as at be because been before being below between both but by can
could did do does doing down during each either else ever every few for from further get gets getting go goes going got
had has have having he her here hers him his how however i if in into is it its itself just less let like made make
makes many may me might more most much must my neither no nor not now of off on once one only or other our out over own
per same say says set shall she should since so some such take than that the their them then there these they thing
things this those though through thus to too two under until up upon us use used uses using very via was way well were
what when where whether which while who whom why will with within without would yet you your
"""
_STOP = frozenset(_STOP_WORDS.split())
_REMEMBERED = 200_000  # words with their synonyms that are kept: about 40 MB
_FORMS = {
    "VERB|Inf": ("VB",),
    "VERB|Ger": ("VBG",),
    "VERB|Part": ("VBN", "VBG"),
    "VERB|Fin": ("VBD", "VBZ", "VBP", "VB"),
}
_OTHER = {"NOUN": ("NN", "NNS"), "ADJ": ("JJ", "JJR", "JJS"), "ADV": ("RB", "RBR", "RBS")}


@dataclass(frozen=True, kw_only=True)
class Synonyms:
    """wordnet: the folder of WordNet 3.0, or for another language than English a tab file of Open Multilingual WordNet.

    share: of the words of a text, at most so many are replaced (at least one). tagger: "perceptron" for parts of speech
    in context (English), None for words that have but one part of speech. language: of the texts; others are refused.
    """

    wordnet: str = "/usr/share/wordnet"
    language: str = "en"
    share: float = 0.15
    tagger: Literal["perceptron"] | None = "perceptron"

    name: ClassVar[str] = "synonyms"
    in_driver: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"Synonyms: share is {self.share}: expected a share of words above 0, at most 1")
        if self.tagger not in ("perceptron", None):
            raise ValueError(f"Synonyms: tagger is {self.tagger!r}: expected 'perceptron' or None")
        if self.tagger and self.language != "en":
            raise ValueError(f"Synonyms: the tagger is for English, not {self.language!r}: set tagger=None")

    @property
    def libraries(self) -> tuple[str, ...]:
        """Of the settings that are used."""
        english = ("lemminflect",) if self.language == "en" else ()
        return ("sentencex", *english, *(("denckring-en-pos",) if self.tagger else ()))

    @property
    def model(self) -> str:
        """The word net and the tagger, for the lineage."""
        return (
            f"{'WordNet 3.0' if self.language == 'en' else 'Open Multilingual WordNet'}, {self.tagger or 'no tagger'}"
        )

    def inputs_key(self) -> Any:
        """Of the files of the word net."""
        return files_key(self.wordnet)

    def build(self) -> SynonymRewriter:
        """The rewriter, with word net and tagger loaded; ValueError where the files are not there."""
        tagger = load_tagger() if self.tagger else None
        table = load_wordnet(self.wordnet) if self.language == "en" else load_omw(self.wordnet)
        return SynonymRewriter(self, table, tagger)


class SynonymRewriter:
    """`Synonyms` with its tables loaded."""

    def __init__(self, config: Synonyms, table: Table, tagger: Tagger | None):
        self.config, self.table, self.tagger = config, table, tagger
        self.listed: dict[str, bool] = {}
        self.choices: dict[tuple[str, str], tuple[str, ...]] = {}

    def __call__(self, requests: Sequence[Request]) -> list[str | Drop]:
        return [self.rewrite(request) for request in requests]

    def rewrite(self, request: Request) -> str | Drop:
        """The text with some words replaced."""
        if not request.text.strip():
            return Drop("empty_text")
        refused = other_language(request, self.config.language)
        if refused is not None:
            return refused
        places, number = self._places(request.text)
        if not places:
            return Drop("no_synonyms")
        draw = chance(request.seed)
        chosen = draw.sample(places, min(len(places), max(1, int(self.config.share * number))))
        out: list[str] = []
        text, end = request.text, 0
        for start, word, choices in sorted(chosen):
            out += (text[end:start], draw.choice(choices))
            end = start + len(word)
        return "".join([*out, text[end:]])

    def _places(self, text: str) -> tuple[list[tuple[int, str, tuple[str, ...]]], int]:
        """Every word that has synonyms where it stands, as (start, word, synonyms), and how many words there are."""
        places, number, offset = [], 0, 0
        for paragraph in paragraphs(text):
            if is_prose(paragraph.text):
                here = offset
                for sentence in sentences(paragraph.text, self.config.language):
                    found = [(here + match.start(), match.group()) for match in WORD.finditer(sentence.text)]
                    number += len(found)
                    places += self._of_sentence(text, found)
                    here += len(sentence.text) + len(sentence.space)
            offset += len(paragraph.text) + len(paragraph.space)
        return places, number

    def _of_sentence(self, text: str, found: list[tuple[int, str]]) -> list[tuple[int, str, tuple[str, ...]]]:
        wanted = [word.islower() and word not in _STOP for _, word in found]
        english = self.config.language == "en"
        if english:
            wanted = [ok and self._listed(word) for ok, (_, word) in zip(wanted, found)]
        if not any(wanted):
            return []
        tags = self.tagger.tag([word for _, word in found]) if self.tagger else [""] * len(found)
        places = []
        for index, (start, word) in enumerate(found):
            if (
                not wanted[index]
                or text[start - 1 : start] in ("-", "_", "/", "@", ".")
                or _glued(text, start + len(word))
            ):
                continue
            choices = self._english(word, tags[index]) if english else self._other(word)
            if index and found[index - 1][1].lower() in _BEFORE_VOWELS:
                choices = tuple(choice for choice in choices if _onset(choice) == _onset(word))
            if choices:
                places.append((start, word, choices))
        return places

    def _listed(self, word: str) -> bool:
        """Whether any reading of an English word has synonyms."""
        known = self.listed.get(word)
        if known is None:
            if len(self.listed) > _REMEMBERED:
                self.listed.clear()
            readings = _readings(word)
            known = self.listed[word] = any((lemma, _PARTS[upos]) in self.table for upos, lemma in readings)
        return known

    def _english(self, word: str, tag: str) -> tuple[str, ...]:
        known = self.choices.get((word, tag))
        if known is None:
            if len(self.choices) > _REMEMBERED:
                self.choices.clear()
            known = self.choices[word, tag] = self._inflected(word, tag)
        return known

    def _inflected(self, word: str, tag: str) -> tuple[str, ...]:
        """Synonyms of an English word in its own inflection; none where its part of speech is in doubt."""
        readings = _readings(word)
        part = tag.partition("|")[0]
        if not tag:
            if len(readings) > 1:
                return ()
            part = readings[0][0]
        choices: list[str] = []
        for upos, lemma in readings:
            if upos != part or part not in _PARTS:
                continue
            forms = [
                form
                for form in _FORMS.get(tag, _OTHER.get(part, ("VBD", "VBZ", "VBG")))
                if word in _inflect(lemma, form)
            ]
            if not forms or (upos == "VERB" and not tag and len(forms) > 1):
                continue
            for other in self.table.get((lemma, _PARTS[part]), ()):
                spelled = _inflect(other, forms[0])
                if len(spelled) == 1 and spelled[0] not in (word, lemma):
                    choices.append(spelled[0])
        return tuple(dict.fromkeys(choices))

    def _other(self, word: str) -> tuple[str, ...]:
        parts = [part for part in _PARTS.values() if (word, part) in self.table]
        return self.table[word, parts[0]] if len(parts) == 1 else ()


def _onset(word: str) -> str:
    """What an article in front goes by. Letters that are a vowel in some words alone are a kind of their own."""
    letter = unicodedata.normalize("NFD", word[0])[0]
    return letter if letter in "huy" else "vowel" if letter in "aeio" else "consonant"


def _glued(text: str, end: int) -> bool:
    """Whether a word goes on in signs: part of an address, a path or a name of code."""
    following = text[end : end + 2]
    return following[:1] in ("_", "/", "@", "(") or (following[:1] in (".", "-") and following[1:].isalnum())


@lru_cache(maxsize=200_000)
def _readings(word: str) -> tuple[tuple[str, str], ...]:
    """(part of speech, lemma) of an English word that a dictionary has; lemminflect's tables alone, no guesses."""
    import lemminflect

    found = lemminflect.getAllLemmas(word)
    return tuple((upos, lemma) for upos, lemmas in found.items() for lemma in lemmas if upos in _PARTS)


@lru_cache(maxsize=200_000)
def _inflect(lemma: str, form: str) -> tuple[str, ...]:
    import lemminflect

    return tuple(lemminflect.getAllInflections(lemma).get(form, ()))
