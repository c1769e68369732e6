"""Toxic and explicit text: a word list, a linear classifier, and filters on the score of any classifier.

The classifier is that of alt-profanity-check 1.9.1 (MIT; TF-IDF of words into a calibrated linear SVM, trained on
Twitter and Wikipedia comments), its five folds averaged into one array of weights, `toxicity_en.npz`; no pickle is
read. It knows words, not sense: it misses threats and irony without strong words.
On the 40 sentences of tests/data/clean/test_toxicity.py, at 0.5: precision 1.00, recall 0.85.
The word list is better-profanity's (MIT), `toxic_words_en.txt`.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import xxhash

from data.clean.language import needed_score
from data.clean.linear import load_classifier
from data.clean.step import Phase, ratio
from data.document import Document, Drop
from data.features import Features

VERSION = 1
LIBRARIES = ("numpy", "xxhash")
_HERE = Path(__file__).parent
_WORD = re.compile(r"\b\w\w+\b")  # scikit-learn's own token pattern, which the weights belong to
_SENTENCE_BREAK = re.compile(r"(?<=[.!?])\s+|\n+")


class _Weights(NamedTuple):
    places: dict[int, int]  # hash of a word -> its place
    weights: np.ndarray  # float32 [words]
    idf: np.ndarray  # float32 [words]
    bias: float


@lru_cache(maxsize=1)
def _load() -> _Weights:
    with np.load(_HERE / "toxicity_en.npz", allow_pickle=False) as arrays:
        index = {value: place for place, value in enumerate(arrays["hashes"].tolist())}
        return _Weights(
            index, arrays["weights"].astype(np.float32), arrays["idf"].astype(np.float32), float(arrays["bias"])
        )


def toxicity(text: str) -> float:
    """The probability, from 0 to 1, that an English text is offensive."""
    model = _load()
    counts = Counter(_WORD.findall(text.lower()))
    places: list[int] = []
    values: list[int] = []
    for word, count in counts.items():
        place = model.places.get(xxhash.xxh3_64_intdigest(word.encode("utf-8", "replace")))
        if place is not None:
            places.append(place)
            values.append(count)
    weighted = np.array(values, np.float32) * model.idf[places]
    norm = float(np.sqrt(weighted @ weighted)) or 1.0
    return float(1 / (1 + np.exp(-(weighted @ model.weights[places] / norm + model.bias))))


@dataclass(frozen=True, kw_only=True)
class Toxicity:
    """Add scores["toxicity"] of the whole text and scores["toxicity_sentence"] of its worst sentence."""

    sentences: bool = True
    min_sentence_words: int = 3

    name: ClassVar[str] = "toxicity"
    phase: ClassVar[Phase] = "score"

    def __call__(self, document: Document, features: Features) -> Document | Drop:
        scores = {"toxicity": round(toxicity(document.text), 4)}
        if self.sentences:
            parts = (p for p in _SENTENCE_BREAK.split(document.text) if p.count(" ") + 1 >= self.min_sentence_words)
            scores["toxicity_sentence"] = round(max(map(toxicity, parts), default=0.0), 4)
        return document.with_scores(**scores)


@dataclass(frozen=True, kw_only=True)
class ClassifierScore:
    """Add the probability of a model that `python -m data.classifier train` made, as scores[score].

    sha256: of the model file, so that another model of the same name makes another dataset; checked when given.
    """

    model: str
    score: str
    sha256: str = ""

    name: ClassVar[str] = "classifier"
    phase: ClassVar[Phase] = "score"

    def __call__(self, document: Document, features: Features) -> Document | Drop:
        return document.with_scores(**{self.score: round(_classifier(self.model, self.sha256)(document.text), 4)})


@lru_cache(maxsize=8)
def _classifier(model: str, sha256: str):  # type: ignore[no-untyped-def]
    if sha256:
        import hashlib

        found = hashlib.sha256(Path(model).read_bytes()).hexdigest()
        if found != sha256:
            raise ValueError(f"{model}: expected sha256 {sha256}, found {found}; give the hash of the file meant")
    return load_classifier(Path(model))


@dataclass(frozen=True, kw_only=True)
class ScoreIs:
    """Keep documents whose score lies in a range; reasons are `low_SCORE` and `high_SCORE`."""

    score: str
    minimum: float = float("-inf")
    maximum: float = float("inf")

    name: ClassVar[str] = "score_is"
    phase: ClassVar[Phase] = "decide"

    def __call__(self, document: Document, features: Features) -> Document | Drop:
        value = float(needed_score(document, self.score, self.name, f"a step that scores {self.score}"))  # type: ignore[arg-type]
        if value < self.minimum:
            return Drop(f"low_{self.score}", value, self.minimum)
        return Drop(f"high_{self.score}", value, self.maximum) if value > self.maximum else document


@lru_cache(maxsize=1)
def listed_words() -> frozenset[str]:
    """The bundled list, lower case; entries of several words too."""
    return frozenset((_HERE / "toxic_words_en.txt").read_text(encoding="utf-8").lower().split("\n")) - {""}


@dataclass(frozen=True, kw_only=True)
class WordList:
    """Drop texts with more listed words than a share of all words, from a number of hits on (`toxic_words`).

    words: a list of one's own; empty takes the bundled English one. One hit in a long text is a quotation.
    """

    words: tuple[str, ...] = ()
    min_hits: int = 3
    max_share: float = 0.01

    name: ClassVar[str] = "word_list"
    phase: ClassVar[Phase] = "clean"

    @cached_property
    def _listed(self) -> frozenset[str]:
        return frozenset(word.lower() for word in self.words) or listed_words()

    def __call__(self, document: Document, features: Features) -> Document | Drop:
        words = _WORD.findall(features.lower)
        hits = sum(word in self._listed for word in words)
        share = ratio(hits, len(words))
        if hits >= self.min_hits and share > self.max_share:
            return Drop("toxic_words", round(share, 4), self.max_share)
        return document
