"""Languages are found with a probability, unknown scripts are said to be unknown, and answers do not change."""

from __future__ import annotations

import subprocess
import sys

import pytest

from data.clean.language import Language, LanguageIs, load_detector, main_script
from data.document import Document, Drop
from data.features import Features
from tests.data.clean.samples import PROSE, document

TEXTS = {
    "en": PROSE,
    "fr": "Le gardien ouvre la porte quand l'eau des deux côtés est à la même hauteur et les bateaux passent.",
    "de": "Der Wärter öffnet das Tor, wenn das Wasser auf beiden Seiten gleich hoch steht, und die Boote fahren ein.",
    "ru": "Смотритель открывает ворота, когда вода с обеих сторон стоит на одной высоте, и лодки входят в шлюз.",
    "el": "Ο φύλακας ανοίγει την πύλη όταν το νερό φτάσει στο ίδιο ύψος και τα πλοία περνούν με προσοχή.",
    "ja": "水の高さが同じになると、番人は門を開けて船を通します。そして本に一行書きます。",
    "ar": "يفتح الحارس البوابة عندما يصبح الماء على الجانبين بنفس الارتفاع وتدخل القوارب بحذر.",
}


@pytest.mark.parametrize("detector", ["py3langid", "langdetect"])
@pytest.mark.parametrize("language", TEXTS)
def test_both_detectors_know_plain_sentences(detector: str, language: str) -> None:
    found, probability = Language(detector=detector).detect(TEXTS[language])  # type: ignore[arg-type]
    assert found == language
    assert 0.8 < probability <= 1.0


def test_no_letters_and_unknown_scripts_are_no_language() -> None:
    assert Language().detect("12345 +++ !!") == ("und", 0.0)
    assert Language().detect("") == ("und", 0.0)
    assert Language().detect("ᚠᚢᚦᚨᚱᚲ ᚷᚹᚺᚾᛁᛃ") == ("unknown:RUNIC", 0.0)
    assert Language().detect("ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ") == ("unknown:CHEROKEE", 0.0)


def test_main_script_is_that_of_most_letters() -> None:
    assert main_script("Привет, world и снова привет") == "CYRILLIC"
    assert main_script("123") is None


def test_langdetect_gives_the_same_answer_in_every_process() -> None:
    program = (
        "from data.clean.language import Language; "
        "print(Language(detector='langdetect').detect('alpha beta gamma delta no si'))"
    )
    answers = {subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout for _ in range(2)}
    assert len(answers) == 1
    assert answers != {""}


def test_scores_stay_on_the_document_and_thresholds_are_per_language() -> None:
    scored = Language()(document(PROSE), Features(PROSE))
    assert isinstance(scored, Document)
    assert scored.scores["language"] == "en"
    step = LanguageIs(languages=("en", "de"), minimum=0.9, minima=(("de", 0.5),))
    unsure = document("x", scores={"language": "de", "language_probability": 0.6})
    assert step(unsure, Features("x")) is unsure
    english = document("x", scores={"language": "en", "language_probability": 0.6})
    assert step(english, Features("x")) == Drop("uncertain_language", 0.6, 0.9)


def test_a_missing_score_names_the_step_that_makes_it() -> None:
    with pytest.raises(ValueError, match=r"put Language\(\.\.\.\) before language_is"):
        LanguageIs()(document("x"), Features("x"))
    with pytest.raises(ValueError, match="py3langid"):
        load_detector("fasttext")
