"""Words as spaCy splits them, and repetition statistics equal to the plain definitions."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from data.english import count_sentences, split_words
from data.features import Features, Words, duplicates

# What spacy.blank("en") of spaCy 3.8 answers.
SPLITS = {
    "(don't!)": "( do n't ! )",
    "Mr. O'Neil's dog, e.g. Rex.": "Mr. O'Neil 's dog , e.g. Rex .",
    "cannot gonna I'll it's its": "can not gon na I 'll it 's its",
    "state-of-the-art foo/bar": "state - of - the - art foo / bar",
    "see foo.Bar and $5.00 or 10km": "see foo . Bar and $ 5.00 or 10 km",
    "http://www.example.com/a?b=c, www.x.org.": "http://www.example.com/a?b=c , www.x.org .",
    "wait... “so” U.S. 3-4 x=1": "wait ... “ so ” U.S. 3 - 4 x=1",
    "me@example.org (default): 50%.": "me@example.org ( default ): 50 % .",
}


@pytest.mark.parametrize(("text", "words"), SPLITS.items())
def test_words_are_those_of_spacy(text: str, words: str) -> None:
    assert split_words(text.split()) == words.split(" ")


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), ("One.", 1), ("One. Two! Three?", 3), ("Mr. Fox left.", 1), ('He left. "Why?" Yes.', 3), ("no end", 1)],
)
def test_sentences_are_those_of_spacy(text: str, count: int) -> None:
    assert count_sentences(text.split()) == count


def naive_duplicated(words: list[str], n: int) -> int:
    seen, place, chars = set(), 0, 0
    while place < len(words) - n + 1:
        gram = tuple(words[place : place + n])
        if gram in seen:
            chars += sum(map(len, gram))
            place += n
        else:
            seen.add(gram)
            place += 1
    return chars


@pytest.mark.parametrize("seed", range(20))
def test_ngram_statistics_equal_the_plain_definitions(seed: int) -> None:
    rng = random.Random(seed)
    words = [rng.choice(["a", "bb", "ccc", "dd", "e"][: 2 + seed % 4]) for _ in range(rng.randrange(2, 120))]
    ours = Words(words)
    for n in range(2, 11):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        assert ours.duplicated_chars(n) == naive_duplicated(words, n)
        if grams:
            gram, count = Counter(grams).most_common(1)[0]
            assert ours.top_ngram(n) == (sum(map(len, gram)), count)
        repeated = [i for i, gram in enumerate(grams) if grams.count(gram) > 1]
        assert ours.repeated_places(n) == repeated


def test_duplicates_count_what_came_before() -> None:
    assert duplicates(["a", "bb", "a", "a", "bb"]) == (3, 4)
    assert duplicates(["a", "b"]) == (0, 0)


def test_features_of_nothing() -> None:
    features = Features("")
    assert (features.english.words, features.symbols, features.filled_lines) == ([], [], [])
    assert features.english.top_ngram(2) == (0, 0)
