"""The gates: what a copy must share with its parent, each refusal with its reason; names, numbers, debris, loops."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.augment.facts import names, numbers, openers
from data.augment.gates import Gates, Traits, similarity
from data.document import Drop

PARENT = (
    "The council of Belford met in 1848 to talk about the new bridge. Maria Keller, who kept the books, said that it "
    "would cost 1,250 pounds and take two years. Most of the members agreed with her and went home before it was dark."
)
GOOD = (
    "In 1848 the council of Belford came together because of the new bridge. Maria Keller kept the books and said that "
    "two years and 1,250 pounds would be needed. Most members agreed and left for home before dark."
)


def reason(copy: str, parent: str = PARENT, **settings) -> str:
    verdict = Gates(**settings).check(Traits(parent), Traits(copy))
    return verdict.reason if isinstance(verdict, Drop) else "passed"


def test_a_good_paraphrase_passes_with_its_measures():
    verdict = Gates().check(Traits(PARENT), Traits(GOOD))
    assert isinstance(verdict, dict)
    assert verdict["length_ratio"] == round(len(GOOD) / len(PARENT), 4) and 0.4 < verdict["similarity"] < 0.9


@pytest.mark.parametrize(
    ("copy", "expected"),
    [
        ("", "empty_output"),
        ("  \n", "empty_output"),
        (GOOD[:60], "too_short"),
        (GOOD * 3, "too_long"),
        (GOOD.replace("1848", "1984"), "numbers_changed"),
        (GOOD.replace(" In 1848", "").replace("In 1848 ", ""), "numbers_changed"),
        (GOOD.replace("Belford", "Arden"), "names_changed"),
        (GOOD.replace("said", "told Robert"), "names_changed"),
        (PARENT, "same_text"),
        (PARENT.lower().replace("belford", "Belford").replace("maria keller", "Maria Keller"), "same_text"),
        ("Here is a paraphrase: " + GOOD, "debris"),
        (GOOD + "\n<|im_end|>", "debris"),
        (GOOD.replace("bridge", "[MASK]"), "debris"),
        ("As an AI language model I may say this. " + GOOD, "debris"),
        (GOOD.replace("books", "*libroj"), "debris"),
        (GOOD[:-60] + "went home and went home and " * 3 + GOOD[-40:], "loop"),
        (
            "Belford 1848 Maria Keller 1,250: two green apples grow on tall old trees where sheep sleep during warm "
            "summer afternoons, while clouds drift slowly over distant hills and nobody hurries anywhere at all, ever.",
            "another_text",
        ),
    ],
)
def test_every_refusal_has_its_reason(copy, expected):
    assert reason(copy) == expected


def test_another_language_is_refused():
    german = (
        "Im Jahr 1848 kam der Rat von Belford wegen der Brücke zusammen. Maria Keller führte die Bücher und sagte, "
        "dass man zwei Jahre und 1,250 Pfund brauche. Die meisten stimmten ihr zu und gingen vor dem Abend nach Hause."
    )
    assert reason(german, similarity=(0.0, 1.0), names=False, numbers=False) == "language_changed"
    assert reason(german, similarity=(0.0, 1.0), names=False, numbers=False, language=False) == "passed"


def test_debris_that_the_parent_holds_too_is_no_debris():
    assert reason(GOOD.replace("bridge", "[MASK]"), PARENT.replace("bridge", "[MASK]")) == "passed"


def test_a_copy_like_its_sibling_is_refused():
    sibling = Traits(GOOD)
    verdict = Gates().check(Traits(PARENT), Traits(GOOD), [sibling])
    assert isinstance(verdict, Drop) and verdict.reason == "same_as_sibling"


def test_names_and_numbers_are_found_where_they_stand():
    text = (
        'Then NASA called Peter\'s friend in New York. "Yes," said McAdam. It cost $1,250.50 on 3/4/1999; 7 of 9 left.'
    )
    assert names(text) == {"NASA", "Peter", "New", "York", "McAdam"}
    assert dict(numbers(text)) == {"1250.50": 1, "3/4/1999": 1, "7": 1, "9": 1}
    text = "Robert ran. The dog's bone! Yes: Two men (Anna's) — However, NASA's"
    assert openers(text) == {"Robert", "Anna"}, "what begins a sentence, without the commonest words"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("twelve and 12, Twelve", {"12": 3}),
        ("two hundred and fifty-one men, 1,250, twelve hundred and fifty", {"251": 1, "1250": 2}),
        ("three thousand, 3 thousand, 2.5 million, a million", {"3000": 2, "2500000": 1, "1000000": 1}),
        ("One of them; twenty-one; someone often weighs a tenth", {"one": 1, "21": 1}),
        ("a two-year-old and forty", {"2": 1, "40": 1}),
    ],
)
def test_numbers_in_words_have_their_values(text, expected):
    assert dict(numbers(text)) == expected


STORY = (
    "Maria went to the market with two coins. She bought bread there, and then she walked home. Farmers sold apples. "
    "The farmers liked her."
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ((("Maria", "Robert"),), "names_changed"),
        ((("Maria went", "She went"),), "names_changed"),
        ((("She bought", "Robert bought"),), "names_changed"),
        ((("two coins", "three coins"),), "numbers_changed"),
        ((("two coins", "two coins and two notes"),), "numbers_changed"),
        ((("two coins", "some coins"),), "numbers_changed"),
        ((("two coins", "2 coins"), ("bread", "one bread")), "passed"),
        ((("Farmers sold", "People sold"),), "passed"),
        ((("Farmers sold", "Farmer families sold"), ("She bought", "However, she bought")), "passed"),
    ],
)
def test_names_that_begin_sentences_and_numbers_in_words_are_kept(changes, expected):
    copy = STORY
    for old, new in changes:
        assert old in copy
        copy = copy.replace(old, new)
    assert reason(copy, STORY) == expected


def test_a_one_may_be_a_number():
    text = (
        "There was 1 way to reach the old house of the keeper, and nobody took it in winter or in the rain of spring."
    )
    assert reason(text.replace("1 way", "one way").replace("nobody", "people never"), text) == "passed"
    assert reason(text.replace("1 way", "a way").replace("nobody", "people never"), text) == "numbers_changed"


@given(
    st.lists(
        st.sampled_from(["river", "stone", "water", "bridge", "council", "keeper", "book", "night"]),
        min_size=1,
        max_size=40,
    )
)
def test_similarity_is_one_for_the_same_words_and_alike_both_ways(listed):
    one, other = Traits(" ".join(listed)), Traits(" ".join(reversed(listed)))
    assert similarity(one, one) == pytest.approx(1.0)
    assert similarity(one, other) == pytest.approx(similarity(other, one))
    assert 0.0 <= similarity(one, Traits("Esel")) <= similarity(one, other) <= 1.0 + 1e-9


def test_bounds_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"similarity is 0\.9 to 0\.2"):
        Gates(similarity=(0.9, 0.2))
