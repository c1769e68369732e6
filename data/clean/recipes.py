"""Ready recipes, each a value: take one as it is, or build another from the same steps."""

from __future__ import annotations

from typing import Any

from data.clean.basic import Alphabetic, Characters, MetaIs, Normalise, WordLength, Words
from data.clean.c4 import C4
from data.clean.code import CodeQuality, Licence
from data.clean.fineweb import FineWeb
from data.clean.gopher_quality import GopherQuality
from data.clean.gopher_repetition import GopherRepetition
from data.clean.language import Language, LanguageIs, LanguageStopWords
from data.clean.perplexity import PerplexityIs
from data.clean.pii import PersonalData
from data.clean.refinedweb import RefinedWebLines
from data.clean.step import Recipe
from data.clean.toxicity import ClassifierScore, ScoreIs, Toxicity, WordList


def basic(*, perplexity: bool = False) -> Recipe:
    """The plain rules of many tutorials: English, 50 to 10,000 words of 3 characters or more on average, 70 % letters.

    perplexity: also ask for at most 1000, which `ScorePerplexity` must have computed in a stage before.
    """
    return Recipe(
        name="basic",
        steps=(
            Normalise(),
            Words(minimum=50, maximum=10_000),
            WordLength(minimum=3.0),
            Alphabetic(minimum=0.7),
            Language(detector="langdetect"),
            LanguageIs(languages=("en",), minimum=0.0),
            *((PerplexityIs(maximum=1000.0),) if perplexity else ()),
        ),
    )


def prose() -> Recipe:
    """Short English prose of known origin, such as documentation: only what is clearly no prose is dropped."""
    return Recipe(
        name="prose",
        steps=(
            Normalise(whitespace="code"),  # examples in documentation live by their indentation
            Words(minimum=15, maximum=100_000),
            WordLength(minimum=2.5, maximum=20.0),
            Alphabetic(minimum=0.45),
            GopherRepetition(duplicate_ngrams=((10, 0.40),), top_ngrams=((2, 0.35),)),
            PersonalData(),
        ),
    )


def code() -> Recipe:
    """Source code as people write it: indentation is kept, generated, minified, vendored and data-like files go."""
    return Recipe(
        name="code",
        steps=(Normalise(whitespace="code"), CodeQuality(), Licence(), PersonalData(kinds=_SECRETS_AND_MAIL)),
    )


# Numbers in code are seldom phones: only what has a form of its own is looked for.
_SECRETS_AND_MAIL = ("private_key", "url_credentials", "api_key", "email", "iban", "national_id")


def web_en() -> Recipe:
    """English web pages after extraction, in FineWeb's order: repetition, quality, C4's lines, its own, personal data.

    As FineWeb does, C4's rule of end marks is left out. What is toxic by list or by score goes too.
    """
    return Recipe(
        name="web_en",
        steps=(
            Normalise(repair_encoding=True),
            Characters(minimum=1, maximum=1_000_000),
            GopherRepetition(),
            GopherQuality(),
            C4(variant="datatrove", end_marks=False),
            FineWeb(),
            WordList(),
            PersonalData(),
            Language(),
            Toxicity(sentences=False),
            LanguageIs(languages=("en",), minimum=0.65),
            ScoreIs(score="toxicity", maximum=0.9),
        ),
    )


def books() -> Recipe:
    """Whole books: long, with chapters; repeated lines are rare, and a strong word is no reason to drop a novel."""
    return Recipe(
        name="books",
        steps=(
            Normalise(repair_encoding=True),
            Words(minimum=1000, maximum=5_000_000),
            GopherRepetition(top_ngrams=((2, 0.20), (3, 0.18)), duplicate_ngrams=((10, 0.10),)),
            GopherQuality(variant="dclm", max_words=5_000_000),
            PersonalData(),
            Language(),
            LanguageIs(languages=("en",), minimum=0.65),
        ),
    )


def papers() -> Recipe:
    """Scientific papers: formulas lower the share of words, references repeat; e-mail addresses of authors go."""
    return Recipe(
        name="papers",
        steps=(
            Normalise(whitespace="code", repair_encoding=True),
            Words(minimum=200, maximum=500_000),
            GopherRepetition(duplicate_ngrams=((10, 0.20),)),
            GopherQuality(variant="dclm", min_alphabetic_words=0.6, max_symbol_ratio=0.3),
            PersonalData(kinds=("email", "api_key", "private_key", "url_credentials")),
            Language(),
            LanguageIs(languages=("en",), minimum=0.5),
        ),
    )


def dialogue() -> Recipe:
    """Conversations and threads: short lines and repeated names are their nature; toxicity and personal data go."""
    return Recipe(
        name="dialogue",
        steps=(
            Normalise(repair_encoding=True),
            Words(minimum=10, maximum=100_000),
            GopherRepetition(
                max_duplicate_lines=0.5,
                max_duplicate_line_chars=0.3,
                top_ngrams=((2, 0.35),),
                duplicate_ngrams=((10, 0.3),),
            ),
            WordList(min_hits=2),
            PersonalData(),
            Language(),
            Toxicity(),
            LanguageIs(languages=("en",), minimum=0.5),
            ScoreIs(score="toxicity_sentence", maximum=0.95),
        ),
    )


_STEPS = {
    step.__name__: step
    for step in (
        *(Alphabetic, C4, Characters, ClassifierScore, CodeQuality, FineWeb, GopherQuality, GopherRepetition, Language),
        *(LanguageIs, LanguageStopWords, Licence, MetaIs, Normalise, PerplexityIs, PersonalData, RefinedWebLines),
        *(ScoreIs, Toxicity, WordLength, WordList, Words),
    )
}


def recipe_from_json(value: dict[str, Any]) -> Recipe | None:
    """A recipe as the manifest holds it, as a value again; None where it holds a step that is not one of ours."""
    steps = []
    for step in value["steps"]:
        kind = _STEPS.get(step["type"])
        if kind is None:
            return None
        steps.append(kind(**{name: _tuples(setting) for name, setting in step.items() if name != "type"}))
    return Recipe(name=value["name"], steps=tuple(steps))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
