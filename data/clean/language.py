"""Which language a text is in: one protocol, two detectors, a probability that stays on the document.

Both detectors are bundled models behind an ordinary package. On real multilingual text py3langid is right for 0.997 of
UDHR paragraphs and 0.96 of single sentences in 60 languages, langdetect for 0.77 of those and at 113 documents/s.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, Protocol

from data.clean.step import Phase
from data.document import Document, Drop
from data.features import Features

VERSION = 1
LIBRARIES = ("langdetect", "py3langid")
SCRIPTS = frozenset(  # of the languages that the detectors know, by the first word of Unicode's character names
    [
        "LATIN",
        "GREEK",
        "CYRILLIC",
        "ARMENIAN",
        "HEBREW",
        "ARABIC",
        "DEVANAGARI",
        "BENGALI",
        "GURMUKHI",
        "GUJARATI",
        "ORIYA",
        "TAMIL",
        "TELUGU",
        "KANNADA",
        "MALAYALAM",
        "SINHALA",
        "THAI",
        "LAO",
        "TIBETAN",
        "MYANMAR",
        "GEORGIAN",
        "HANGUL",
        "ETHIOPIC",
        "KHMER",
        "HIRAGANA",
        "KATAKANA",
        "CJK",
        "FULLWIDTH",
        "HALFWIDTH",
        "MODIFIER",
        "FEMININE",
        "MASCULINE",
        "MICRO",
    ]
)
_LETTERS = re.compile(r"[^\W\d_]")
_SCRIPT_SAMPLE = 200  # letters whose script is looked up
# Most frequent words of a language, for filters that count stop words; from Gopher's own list for English, and the same
# articles, conjunctions and prepositions elsewhere.
STOP_WORDS = {
    "en": ("the", "be", "to", "of", "and", "that", "have", "with"),
    "de": ("der", "die", "und", "in", "den", "von", "zu", "das", "mit", "nicht"),
    "fr": ("de", "la", "le", "et", "les", "des", "en", "un", "que", "dans"),
    "es": ("de", "la", "que", "el", "en", "y", "los", "se", "del", "por"),
    "it": ("di", "e", "il", "la", "che", "in", "un", "per", "del", "non"),
    "pt": ("de", "a", "o", "que", "e", "do", "da", "em", "um", "para"),
    "nl": ("de", "en", "van", "het", "een", "in", "is", "dat", "op", "te"),
    "sv": ("och", "i", "att", "det", "som", "en", "på", "är", "av", "för"),
    "pl": ("i", "w", "na", "z", "do", "się", "nie", "jest", "że", "to"),
    "ru": ("и", "в", "не", "на", "что", "с", "он", "как", "это", "по"),
}


class Detector(Protocol):
    """Says the language of a text."""

    def __call__(self, text: str) -> tuple[str, float]:
        """(ISO 639-1 code, probability from 0 to 1); ("und", 0.0) where nothing can be said."""
        ...


@lru_cache(maxsize=4)
def load_detector(name: str) -> Detector:
    """A detector by the name of its package; the model is read once per process."""
    if name == "py3langid":
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

        def detect(text: str) -> tuple[str, float]:
            language, probability = identifier.classify(text)
            return str(language), float(probability)

        return detect
    if name == "langdetect":
        return _langdetect
    raise ValueError(f"no language detector {name!r}; detectors are 'py3langid' and 'langdetect'")


def _langdetect(text: str) -> tuple[str, float]:
    """langdetect with a fixed seed of its own: it samples, and would answer differently each time."""
    from langdetect import detector_factory
    from langdetect.lang_detect_exception import LangDetectException

    detector_factory.init_factory()
    detector = detector_factory._factory.create()
    detector.seed = 0
    detector.append(text)
    try:
        best = detector.get_probabilities()
    except LangDetectException:
        return "und", 0.0
    return (best[0].lang.split("-")[0], float(best[0].prob)) if best else ("und", 0.0)


@dataclass(frozen=True, kw_only=True)
class Language:
    """Add scores["language"] and scores["language_probability"].

    A text without letters is "und"; one in a script that no detector knows is "unknown:CHEROKEE", and never some
    language at random. max_chars: how much of a text is looked at; more changes nothing.
    """

    detector: Literal["py3langid", "langdetect"] = "py3langid"
    max_chars: int = 2000

    name: ClassVar[str] = "language"
    phase: ClassVar[Phase] = "score"

    def __call__(self, document: Document, features: Features) -> Document | Drop:
        language, probability = self.detect(document.text[: self.max_chars])
        return document.with_scores(language=language, language_probability=round(probability, 4))

    def detect(self, text: str) -> tuple[str, float]:
        """(language, probability) of a text."""
        script = "LATIN" if text.isascii() else main_script(text)
        if script is None or (script == "LATIN" and not _LETTERS.search(text)):
            return "und", 0.0
        if script not in SCRIPTS:
            return f"unknown:{script}", 0.0
        return load_detector(self.detector)(text.encode("utf-8", "replace").decode())


def main_script(text: str) -> str | None:
    """The script of most letters at the start of a text, as Unicode names it; None without letters."""
    scripts: Counter[str] = Counter()
    for match in _LETTERS.finditer(text):
        scripts[unicodedata.name(match.group(), "UNNAMED").split(" ")[0].split("-")[0]] += 1
        if scripts.total() >= _SCRIPT_SAMPLE:
            break
    return scripts.most_common(1)[0][0] if scripts else None


@dataclass(frozen=True, kw_only=True)
class LanguageIs:
    """Keep some languages, each from its own probability on; reads the scores of `Language`.

    minimum: of every language (FineWeb and RefinedWeb use 0.65, C4 0.99); minima: (language, minimum) of some.
    """

    languages: tuple[str, ...] = ("en",)
    minimum: float = 0.65
    minima: tuple[tuple[str, float], ...] = ()

    name: ClassVar[str] = "language_is"
    phase: ClassVar[Phase] = "decide"

    def __call__(self, document: Document, features: Features) -> Document | Drop:
        language = str(needed_score(document, "language", self.name, "Language"))
        probability = float(document.scores["language_probability"])
        wanted = ", ".join(self.languages)
        if language == "und":
            return Drop("no_language", language, wanted)
        if language.startswith("unknown:"):
            return Drop("unknown_script", language.removeprefix("unknown:"), wanted)
        if language not in self.languages:
            return Drop("wrong_language", language, wanted)
        minimum = dict(self.minima).get(language, self.minimum)
        if probability < minimum:
            return Drop("uncertain_language", probability, minimum)
        return document


@dataclass(frozen=True, kw_only=True)
class LanguageStopWords:
    """Drop texts with too few of their own language's stop words; languages without a list pass."""

    minimum: int = 2

    name: ClassVar[str] = "language_stop_words"
    phase: ClassVar[Phase] = "decide"

    def __call__(self, document: Document, features: Features) -> Document | Drop:
        words = STOP_WORDS.get(str(needed_score(document, "language", self.name, "Language")))
        if words is None:
            return document
        found = len({word.strip(".,;:!?\"'()").lower() for word in features.chunks}.intersection(words))
        return Drop("few_stop_words", found, self.minimum) if found < self.minimum else document


def needed_score(document: Document, score: str, step: str, maker: str) -> object:
    """document.scores[score], or a ValueError that says which step makes it."""
    value = document.scores.get(score)
    if value is None:
        raise ValueError(f"{step}: document {document.id} has no score {score!r}; put {maker}(...) before {step}")
    return value
