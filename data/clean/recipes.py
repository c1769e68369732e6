"""Ready recipes, each a value: take one as it is, or build another from the same steps."""

from __future__ import annotations

from data.clean.basic import Alphabetic, Characters, Normalise, WordLength, Words
from data.clean.step import Recipe


def prose() -> Recipe:
    """Short English prose of known origin, such as documentation: only what is clearly no prose is dropped."""
    return Recipe(name="prose", steps=(Normalise(), Words(minimum=20, maximum=100_000), Alphabetic(minimum=0.5)))


def code() -> Recipe:
    """Source code: indentation is kept."""
    return Recipe(name="code", steps=(Normalise(whitespace="code"), Characters(minimum=100, maximum=1_000_000)))


def basic() -> Recipe:
    """The plain rules of many tutorials: 50 to 10,000 words of 3 characters or more on average, 70 % letters."""
    return Recipe(name="basic", steps=(Normalise(), Words(), WordLength(), Alphabetic()))
