"""Each technique by itself: what it changes, what it never touches, and what it says where it cannot work."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from data.augment.facts import names, numbers
from data.augment.gates import Gates, Traits
from data.augment.masked import MaskedReplacement
from data.augment.paraphrase import Paraphrase, clean_answer
from data.augment.reorder import Reorder
from data.augment.sentences import joined, paragraphs, sentences
from data.augment.synonyms import Synonyms
from data.augment.tagger import load_tagger
from data.augment.technique import Request
from data.augment.translate import BackTranslation, Command
from data.augment.wordnet import load_omw, load_wordnet
from data.document import Drop
from tests.data.augment.cases import Backwards, Shouting, news_paragraphs, prose

WORDNET = "/usr/share/wordnet"
needs_wordnet = pytest.mark.skipif(
    not Path(WORDNET, "data.noun").exists(), reason="WordNet is not installed (Debian: wordnet-base): not tested"
)
needs_apertium = pytest.mark.skipif(
    shutil.which("apertium") is None or not Path("/usr/share/apertium/modes/en-eo.mode").exists(),
    reason="Apertium with English and Esperanto is not installed (Debian: apertium-eo-en): not tested",
)
DIALOGUE = (
    '"Where is the gate?" asked Tobias. He waited. Nobody spoke.\n\nAnna: It is shut. Come back later. I am tired.'
)
LIST = "- one apple. two pears. three plums.\n- four more. five more. six more."


def test_a_text_taken_apart_is_put_together_again():
    for text in (prose(1), DIALOGUE, LIST, "  one.  Two!\n \n\n three? \n", "", "no end"):
        assert joined(paragraphs(text)) == text
        assert "".join(joined(sentences(part.text, "en")) + part.space for part in paragraphs(text)) == text


@pytest.mark.parametrize("mode", ["shuffle", "rotate"])
def test_reordering_moves_sentences_within_their_paragraphs_only(mode):
    text = "\n\n".join([prose(3), DIALOGUE, LIST])
    parent = text.split("\n\n")
    for seed in range(20):
        copy = Reorder(mode=mode).rewrite(Request(text, seed))
        assert isinstance(copy, str) and copy != text
        parts = copy.split("\n\n")
        assert parts[2:] == parent[2:], "turns of a dialogue and lists stay"
        for part, old in zip(parts[:2], parent[:2]):
            assert sorted(p.text for p in sentences(part, "en")) == sorted(p.text for p in sentences(old, "en"))
        assert Reorder(mode=mode).rewrite(Request(text, seed)) == copy
    orders = {Reorder(mode=mode).rewrite(Request(text, seed)) for seed in range(20)}
    assert len(orders) > 10


def test_a_text_that_has_no_other_order_is_a_counted_rejection():
    assert Reorder().rewrite(Request(prose(1), 0, dialogue=True)) == Drop("dialogue")
    for text, reason in (("", "empty_text"), ("One sentence.", "nothing_to_reorder"), (DIALOGUE, "nothing_to_reorder")):
        assert Reorder().rewrite(Request(text, 0)) == Drop(reason)


@pytest.fixture(scope="module")
def synonyms():
    return Synonyms(wordnet=WORDNET, share=1.0).build()


@needs_wordnet
def test_synonyms_keep_inflection_and_part_of_speech(synonyms):
    text = "She purchased the lamp. The physicians largely began buying larger automobiles, usually near a big lake."
    found = set()
    for seed in range(40):
        copy = synonyms.rewrite(Request(text, seed))
        found |= set(zip(text.split(), copy.split()))
    assert ("purchased", "bought") in found and ("physicians", "doctors") in found
    assert ("largely", "mostly") in found and ("larger", "bigger") in found
    assert {old for old, new in found if old != new}.isdisjoint({"She", "The", "the", "near", "a"})


@needs_wordnet
def test_synonyms_leave_names_numbers_addresses_and_code(synonyms):
    text = (
        "Maria Stone bought 12 large stones at large.example/big in Big Falls.\n\n    large = buy(big)\n\n"
        "The big-hearted doctor of St. Mary began at nine."
    )
    for seed in range(10):
        copy = synonyms.rewrite(Request(text, seed))
        assert names(copy) == names(text) and numbers(copy) == numbers(text)
        assert "large.example/big" in copy and "    large = buy(big)" in copy and "big-hearted" in copy


@needs_wordnet
def test_an_article_fits_the_word_behind_it(synonyms):
    text = "It was a usual day and an odd sight for a physician and an automobile."
    for seed in range(30):
        listed = synonyms.rewrite(Request(text, seed)).split()
        for article, word in pairwise(listed):
            if article in ("a", "an"):
                assert (article == "an") == (word[0] in "aeio" or word == "unusual"), (article, word)


@needs_wordnet
def test_without_a_tagger_only_words_of_one_part_of_speech_are_replaced():
    rewriter = Synonyms(wordnet=WORDNET, tagger=None, share=1.0).build()
    copies = {rewriter.rewrite(Request("The physicians purchase automobiles largely.", seed)) for seed in range(20)}
    assert all("purchase " in copy for copy in copies), "a noun or a verb: in doubt it stays"
    assert any("doctors" in copy for copy in copies)


@needs_wordnet
def test_wordnet_gives_the_usual_sense_alone():
    table = load_wordnet(WORDNET)
    assert "physician" in table["doctor", "n"] and "purchase" in table["buy", "v"]
    assert ("run", "v") not in table and ("bank", "n") not in table, "words of many senses have none"
    assert not [word for word, _ in table if not word.isalpha()]


def test_other_languages_come_from_the_open_multilingual_wordnet(tmp_path):
    lines = [
        "# name\tfra",
        "00001740-n\tfra:lemma\tvoiture",
        "00001740-n\tfra:lemma\tautomobile",
        "2-v\tfra:lemma\tmarcher",
    ]
    file = tmp_path / "wn-data-fra.tab"
    file.write_text(
        "\n".join([*lines, "00001740-n\tfra:lemma\tchar à voile", "3-a\tfra:lemma\tgrand"]), encoding="utf-8"
    )
    assert dict(load_omw(str(file))) == {("voiture", "n"): ("automobile",), ("automobile", "n"): ("voiture",)}
    rewriter = Synonyms(wordnet=str(file), language="fr", tagger=None).build()
    assert rewriter.rewrite(Request("Une grande voiture passe.", 0, "fr")) == "Une grande automobile passe."
    for article in ("La", "la", "Sa"):
        assert rewriter.rewrite(Request(f"{article} voiture est grande.", 0, "fr")) == Drop("no_synonyms")
    assert rewriter.rewrite(Request("The car.", 0, "en")) == Drop("wrong_language", "en", "fr")


def test_missing_word_nets_are_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"no WordNet at .*wordnet-base"):
        Synonyms(wordnet=str(tmp_path)).build()
    with pytest.raises(ValueError, match="no Open Multilingual WordNet"):
        load_omw(str(tmp_path / "none.tab"))
    with pytest.raises(ValueError, match="the tagger is for English"):
        Synonyms(language="fr")


def test_the_tagger_reads_words_in_their_sentence():
    tagger = load_tagger()
    tags = dict(zip(["she", "walks", "home"], tagger.tag(["she", "walks", "home"])))
    assert tags["walks"].startswith("VERB")
    assert tagger.tag(["the", "evening", "walks", "were", "long"])[2].startswith("NOUN")


def test_masks_are_whole_small_words_and_the_answer_is_put_in_their_place():
    rewriter = MaskedReplacement(filler=Backwards(), share=0.5).build()
    text = "Maria Keller kept 12 old books in Belford, near www.example.org, until no-one wanted them."
    for seed in range(20):
        masked = rewriter.mask(Request(text, seed))
        chosen = [text[a:b] for a, b in masked.spans]
        assert chosen and set(chosen) <= {"kept", "old", "books", "near", "until", "wanted", "them"}
        (copy,) = rewriter([Request(text, seed)])
        kept = [word for word in chosen if "e" in word]
        if len(kept) < len(chosen):
            assert Counter(copy.split()) != Counter(text.split()) and all(word in copy for word in kept)
        else:
            assert copy == Drop("nothing_replaced")
    assert rewriter([Request("12 34", 0), Request("", 0), Request("Ein Haus.", 0, "de")]) == [
        Drop("nothing_to_mask"),
        Drop("empty_text"),
        Drop("wrong_language", "de", "en"),
    ]


def test_paraphrases_lose_their_preamble_and_lists_stay():
    text = "\n\n".join([prose(2), LIST])
    (copy,) = Paraphrase(generator=Shouting()).build()([Request(text, 0)])
    assert copy.endswith(LIST) and not copy.startswith("Here") and "that" in copy and copy.count("\n\n") == 2
    assert clean_answer('Sure, here it is!\n\n"The gate is shut."') == "The gate is shut."
    assert clean_answer("Here is my dog. It barks.") == "Here is my dog. It barks."


def test_a_model_that_gives_nothing_is_a_counted_rejection():
    @dataclass(frozen=True)
    class Silent:
        def generate(self, prompts):
            return ["" for _ in prompts]

        def translate(self, sentences):
            return ["" for _ in sentences]

    (answer,) = Paraphrase(generator=Silent()).build()([Request(prose(1), 0)])
    assert answer == Drop("empty_output")
    spec = Paraphrase(generator=Shouting(), styles=("simple", "encyclopaedic", "instruction"))
    assert {spec.drawn(seed)["style"] for seed in range(20)} == set(spec.styles)
    assert BackTranslation(routes=((Command(source="en", target="en", command=("cat", "-u")),),)).model == (
        "en en (cat -u)"
    )
    (answer,) = Paraphrase(generator=Silent(), longest_part=50).build()([Request(prose(1), 0)])
    assert answer.reason == "paragraph_too_long"

    @dataclass(frozen=True)
    class Spec:
        source: str
        target: str

        def build(self):
            return Silent()

    route = (Spec("en", "fr"), Spec("fr", "en"))
    rewriter = BackTranslation(routes=(route,)).build()
    requests = [Request(prose(1), 0), Request("a" * 100_000, 0), Request("Ein Haus.", 0, "de"), Request(" ", 0)]
    assert rewriter(requests) == [
        Drop("empty_translation"),
        Drop("sentence_too_long", 100_000, 2000),
        Drop("wrong_language", "de", "en"),
        Drop("empty_text"),
    ]
    with pytest.raises(ValueError, match="writes 'fr', but what reads it expects 'de'"):
        BackTranslation(routes=((Spec("en", "fr"), Spec("de", "en")),))
    with pytest.raises(ValueError, match="must lead back to 'en'"):
        BackTranslation(routes=((Spec("en", "fr"),),))


def test_every_prompt_brings_its_own_seed_and_an_answer_that_was_cut_is_a_rejection():
    class Drawing:
        """Answers with the seed; those of long prompts are cut."""

        max_new_tokens = 100

        def answers(self, prompts, seeds):
            return [None if "Cut" in prompt else f"seed {seed}" for prompt, seed in zip(prompts, seeds, strict=True)]

    rewriter = Paraphrase(generator=Drawing(), longest_part=400).build()
    two, one = "\n\n".join(["It is a long way. " * 20] * 2), "It is a short way."
    together = rewriter([Request(two, 1), Request(one, 2), Request("", 3), Request(f"{two}\n\nCut.", 4)])
    alone = [rewriter([Request(text, seed)])[0] for text, seed in ((two, 1), (one, 2))]
    assert together[:2] == alone, "the prompts beside it change nothing"
    assert len({*together[0].split("\n\n"), together[1]}) == 3
    assert together[2:] == [Drop("empty_text"), Drop("answer_cut")]
    with pytest.raises(ValueError, match=r"stops after 100 tokens, but longest_part=1500 .*max_new_tokens=750"):
        Paraphrase(generator=Drawing())


def test_a_program_translates_line_by_line_and_its_faults_are_one_line():
    upper = Command(source="en", target="xx", command=("tr", "a-z", "A-Z"), lines=2)
    assert upper.translate(["one two", "three\nfour", "five"]) == ["ONE TWO", "THREE FOUR", "FIVE"]
    back = Command(source="xx", target="en", command=("tr", "A-Z", "a-z"))
    gates = Gates(similarity=(0.0, 1.0))
    text = "first comes the keeper. then comes the boat.\n\nlast comes the night."
    (copy,) = BackTranslation(routes=((upper, back),), gates=gates).build()([Request(text, 5)])
    assert copy == text
    for command, message in (
        (("no-such-program",), "no program 'no-such-program'"),
        (("false",), "ended with code 1"),
        (("head", "-1"), "gave 1 lines for 2 sentences"),
        (("sleep", "5"), "not done with 2 sentences after 0.2 s"),
    ):
        with pytest.raises(ValueError, match=message):
            Command(source="en", target="xx", command=command, seconds=0.2).translate(["a", "b"])


@needs_apertium
@pytest.mark.real_data
def test_apertium_translates_real_sentences_to_esperanto_and_back(real_data):
    there = Command(source="en", target="eo", command=("apertium", "-u", "en-eo"))
    again = Command(source="eo", target="en", command=("apertium", "-u", "eo-en"))
    rewriter = BackTranslation(routes=((there, again),)).build()
    texts = [Request(text, 1) for text in news_paragraphs(real_data, 12)]
    copies = rewriter([Request("Machine learning is transforming industries worldwide.", 0), *texts])
    assert copies[0] == "Maŝina learning is converting industries globally."
    verdicts = [Gates().check(Traits(r.text), Traits(c)) for r, c in zip(texts, copies[1:]) if isinstance(c, str)]
    assert len(verdicts) == 12 and any(isinstance(verdict, dict) for verdict in verdicts)
