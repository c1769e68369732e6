"""Golden numbers for each named variant, and the documents on which variants of one name disagree."""

from __future__ import annotations

import pytest

from data.clean.c4 import C4
from data.clean.fineweb import FineWeb
from data.clean.gopher_quality import GopherQuality
from data.clean.gopher_repetition import GopherRepetition
from data.clean.refinedweb import RefinedWebLines
from data.document import Document, Drop
from data.features import Features
from tests.data.clean.samples import PROSE, document, lettered


def measured(step, text: str) -> dict[str, float]:
    features = Features(text)
    return {rule.reason: round(rule.measure(features), 4) for rule in step.rules}


def reason(step, text: str) -> str | None:
    result = step(document(text), Features(text))
    return result.reason if isinstance(result, Drop) else None


def test_published_limits_of_gopher() -> None:
    limits = {rule.reason: rule.threshold for rule in (*GopherQuality().rules, *GopherRepetition().rules)}
    assert limits == {
        **{"too_few_words": 50, "too_many_words": 100_000, "short_words": 3, "long_words": 10},
        **{"too_many_hashes": 0.1, "too_many_ellipses": 0.1, "too_many_bullets": 0.9, "too_many_ellipsis_lines": 0.3},
        **{"few_alphabetic_words": 0.8, "few_stop_words": 2},
        **{"duplicate_paragraphs": 0.3, "duplicate_paragraph_chars": 0.2},
        **{
            "duplicate_lines": 0.3,
            "duplicate_line_chars": 0.2,
            "top_2_gram": 0.2,
            "top_3_gram": 0.18,
            "top_4_gram": 0.16,
        },
        **{"duplicate_5_grams": 0.15, "duplicate_6_grams": 0.14, "duplicate_7_grams": 0.13},
        **{"duplicate_8_grams": 0.12, "duplicate_9_grams": 0.11, "duplicate_10_grams": 0.1},
    }


def test_words_of_the_quality_variants() -> None:
    text = "Don't stop: the (old) dog and the cat…"
    datatrove, dolma = measured(GopherQuality(), text), measured(GopherQuality(variant="dolma"), text)
    # Do n't stop : the ( old ) dog and the cat … : nine of thirteen spaCy words are no punctuation.
    assert datatrove["too_few_words"] == 9
    assert datatrove["short_words"] == round((2 + 3 + 4 + 3 + 3 + 3 + 3 + 3 + 3) / 9, 4)
    assert datatrove["few_alphabetic_words"] == round(9 / 13, 4)
    assert dolma["too_few_words"] == 8
    assert dolma["short_words"] == 3.5  # the median of 5 5 3 5 3 3 3 4
    assert dolma["few_alphabetic_words"] == 1.0


def test_stop_words_distinct_or_counted() -> None:
    text = "the the The the " + lettered(60)
    assert measured(GopherQuality(), text)["few_stop_words"] == 1
    assert measured(GopherQuality(variant="dolma"), text)["few_stop_words"] == 3
    assert measured(GopherQuality(variant="dclm"), text)["few_stop_words"] == 4
    assert reason(GopherQuality(), text) == "few_stop_words"
    assert reason(GopherQuality(variant="dolma"), text) is None


def test_bullets_and_ellipses_differ() -> None:
    stars = "\n".join(f"* {lettered(6)} the of" for _ in range(10))
    assert measured(GopherQuality(), stars)["too_many_bullets"] == 0.0
    assert measured(GopherQuality(variant="dolma"), stars)["too_many_bullets"] == 1.0
    dots = "\n".join(["and so on..."] * 3 + ["the end."])
    assert measured(GopherQuality(), dots)["too_many_ellipsis_lines"] == 0.75
    assert measured(GopherQuality(variant="dolma"), dots)["too_many_ellipsis_lines"] == 0.0


def test_repeated_lines_with_or_without_the_first() -> None:
    text = "same words\nsame words\nother words\nmore words"
    assert measured(GopherRepetition(), text)["duplicate_lines"] == 0.25
    assert measured(GopherRepetition(), text)["duplicate_line_chars"] == round(10 / len(text), 4)
    dolma = measured(GopherRepetition(variant="dolma"), text)
    assert dolma["duplicate_lines"] == 0.5
    assert dolma["duplicate_line_chars"] == round(20 / len(text.replace("\n", "").replace(" ", "")), 4)
    dclm = measured(GopherRepetition(variant="dclm"), text)
    assert dclm["duplicate_line_chars"] == round(20 / (10 + 10 + 11 + 10), 4)
    assert reason(GopherRepetition(), text) == "duplicate_line_chars"
    assert reason(GopherRepetition(variant="dolma"), text) == "duplicate_lines"


def test_top_ngram_ties_and_denominators() -> None:
    text = "aa bb cc aa bb dddd eeee dddd eeee"
    assert measured(GopherRepetition(), text)["top_2_gram"] == round(2 * len("aa bb") / len(text), 4)
    words = len(text.replace(" ", ""))
    assert measured(GopherRepetition(variant="dolma"), text)["top_2_gram"] == round(2 * 4 / words, 4)
    assert measured(GopherRepetition(variant="dclm"), text)["top_2_gram"] == round(2 * 8 / words, 4)


def test_duplicate_ngrams_do_not_overlap_in_datatrove() -> None:
    text = " ".join(["ab"] * 20)
    # First at 0, then repeats at 1, 6 and 11, five words each: 16 is the last place a 5-gram can start, and 16 repeats.
    assert measured(GopherRepetition(), text)["duplicate_5_grams"] == round(15 * 2 / len(text), 4)
    assert measured(GopherRepetition(variant="dolma"), text)["duplicate_5_grams"] == 1.0
    assert measured(GopherRepetition(variant="dclm"), text)["duplicate_5_grams"] == 1.0


C4_PAGE = (
    "Four words are here.\n"
    "Five words are in here.\n"
    "A line without an end mark\n"
    "He said that it is 'fine'\n"
    "This one trails off into nothing...\n"
    "Please turn on javascript in your browser.\n"
    "Read our privacy policy before you go on.\n"
    "A known fact[12] that was never cited[citation needed]."
)


def c4_lines(variant: str, **more) -> list[str] | str:
    result = C4(variant=variant, **more)(document(C4_PAGE), Features(C4_PAGE))  # type: ignore[arg-type]
    return result.reason if isinstance(result, Drop) else result.text.split("\n")


def test_c4_lines_of_each_variant() -> None:
    cited = "A known fact that was never cited."
    assert c4_lines("tfds", min_sentences=2) == ["Five words are in here.", cited]
    assert c4_lines("tfds") == "too_few_sentences"
    assert c4_lines("datatrove", min_sentences=4) == [
        "Four words are here.",
        "Five words are in here.",
        "He said that it is 'fine'",
        cited,
    ]
    assert c4_lines("datatrove") == "too_few_sentences"
    assert c4_lines("dolma") == "javascript"
    assert "A line without an end mark" in c4_lines("datatrove", end_marks=False)


@pytest.mark.parametrize(("sentences", "tfds", "datatrove"), [(2, False, False), (3, True, False), (5, True, True)])
def test_c4_numbers_are_swapped_between_the_variants(sentences: int, tfds: bool, datatrove: bool) -> None:
    text = "\n".join(["This line holds six whole words."] * sentences)
    assert (reason(C4(), text) is None) is tfds
    assert (reason(C4(variant="datatrove"), text) is None) is datatrove


def test_c4_brackets_count_only_in_lines_that_stay_but_anywhere_in_dolma() -> None:
    text = "{ no end mark\n" + "\n".join(["This line holds six whole words."] * 5)
    assert reason(C4(), text) is None
    assert reason(C4(variant="datatrove"), text) is None
    assert reason(C4(variant="dolma"), text) == "curly_bracket"


def test_c4_counts_what_it_removed() -> None:
    result = C4(variant="datatrove", min_sentences=1)(document(C4_PAGE), Features(C4_PAGE))
    assert isinstance(result, Document)
    assert result.meta["changed"] == {"c4": {"no_end_mark": 2, "javascript": 1, "policy": 1}}


def test_fineweb_limits_and_numbers() -> None:
    limits = {rule.reason: rule.threshold for rule in FineWeb().rules}
    assert limits == {
        **{"no_lines": 1, "few_ended_lines": 0.12, "too_many_short_lines": 0.67, "duplicate_line_chars": 0.01},
        "too_many_newlines": 0.3,
    }
    text = "A line that ends with a mark, long.\nshort\n\nshort"
    assert measured(FineWeb(), text) == {
        **{"no_lines": 3, "few_ended_lines": 0.3333, "too_many_short_lines": 0.6667},
        **{"duplicate_line_chars": round(5 / 45, 4), "too_many_newlines": round(3 / 12, 4)},
    }


def test_refinedweb_removes_lines_and_cuts_phrases() -> None:
    text = f"{PROSE}\nTHIS IS ALL UPPER CASE\n123456\n3 Likes\nword\nGo on with it. Read more..."
    result = RefinedWebLines(max_removed_words=0.2)(document(text), Features(text))
    assert isinstance(result, Document)
    assert result.text == f"{PROSE}\nGo on with it."
    removed = {"uppercase": 1, "numeric": 1, "counter": 1, "few_words": 1, "phrase": 1}
    assert result.meta["changed"] == {"refinedweb_lines": removed}
    assert reason(RefinedWebLines(), text) == "too_many_words_removed"
