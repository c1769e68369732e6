"""The bundled classifier on labelled sentences, and the classifier that one trains oneself."""

from __future__ import annotations

import random

import numpy as np
import pytest

from data.classifier import main
from data.clean.linear import Classifier, ClassifierConfig, load_classifier, train
from data.clean.toxicity import ClassifierScore, Toxicity, toxicity
from data.document import Document
from data.features import Features
from tests.data.clean.samples import PROSE, document

# Written for this test; the last three of each list are what word weights get wrong or nearly so.
TOXIC = (
    *("You are a stupid idiot and nobody likes you.", "Go to hell, you bastard.", "What a fucking moron you are."),
    *("Shut up, you ugly bitch.", "I hate you, you pathetic loser.", "Eat shit and die.", "You dumb piece of crap."),
    *("Kill yourself, you worthless trash.", "Those assholes should be shot.", "Suck my dick, you whore."),
    *(
        "This faggot makes me sick.",
        "He is a retarded jerk.",
        "You disgusting pig, go die.",
        "Damn you, you stupid cow.",
    ),
    *("What an idiotic, ignorant clown.", "Fuck off and leave us alone.", "You are nothing but filth."),
    *("People like you do not deserve to live.", "We know where you sleep at night.", "Your kind is a disease."),
)
CLEAN = (
    *("The cat sat on the mat.", "We walked to the market and bought some bread.", "Please call me tomorrow morning."),
    *(
        "The function returns a list of numbers.",
        "Thank you for your kind help with this.",
        "It may rain in the evening.",
    ),
    *("The museum opens at nine and closes at five.", "She wrote a book on the history of canals."),
    *("The committee agreed on a new schedule.", "Water boils at a lower temperature in the mountains."),
    *("He plays the violin in a small orchestra.", "The results were published last spring."),
    *("Our train was late because of the snow.", "I disagree with this argument for two reasons."),
    *(
        "The patient was given a lower dose.",
        "They painted the door blue.",
        "This error means that the file is missing.",
    ),
    *("The assassin killed the president in the book.", "The process was killed by the kernel."),
    "Breast cancer screening saves lives.",
)


def test_precision_and_recall_that_the_module_states() -> None:
    toxic = [toxicity(text) >= 0.5 for text in TOXIC]
    clean = [toxicity(text) >= 0.5 for text in CLEAN]
    precision = sum(toxic) / (sum(toxic) + sum(clean))
    recall = sum(toxic) / len(toxic)
    print(f"precision {precision:.3f} recall {recall:.3f}")
    assert precision >= 0.9
    assert recall >= 0.85


def test_one_bad_sentence_shows_in_the_sentence_score() -> None:
    text = f"{PROSE} What a fucking moron you are. {PROSE}"
    scored = Toxicity()(document(text), Features(text))
    assert isinstance(scored, Document)
    assert scored.scores["toxicity_sentence"] > 0.9 > 0.5 > scored.scores["toxicity"]


def corpora() -> tuple[list[str], list[str]]:
    rng = random.Random(0)
    boats = "boat lock sluice river water gate keeper rope harbour sail".split()  # noqa: SIM905
    code = "return import class tuple lambda yield print self index value".split()  # noqa: SIM905
    return tuple([" ".join(rng.choices(words, k=12)) + f" {i}" for i in range(200)] for words in (boats, code))  # type: ignore[return-value]


def test_train_save_load_and_score(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, texts in zip(("boats", "code"), corpora()):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts))
    model = tmp_path / "model.npz"
    main(
        [
            "train",
            "--positive",
            str(tmp_path / "boats.txt"),
            "--negative",
            str(tmp_path / "code.txt"),
            "--out",
            str(model),
        ]
    )
    told = capsys.readouterr().out
    assert "0.5      1.000   1.000" in told
    assert "of which positive" in told
    classifier = load_classifier(model)
    assert classifier("the boat waits at the river lock") > 0.5 > classifier("import a class and return its value")
    scored = ClassifierScore(model=str(model), score="boats")(document("a boat in the lock"), Features(""))
    assert isinstance(scored, Document)
    assert scored.scores["boats"] > 0.5


def test_training_is_the_same_each_time() -> None:
    positive, negative = corpora()
    config = ClassifierConfig(buckets=1 << 12)
    first, second = train(positive, negative, config), train(positive, negative, config)
    assert np.array_equal(first.weights, second.weights)
    assert isinstance(first, Classifier)


def test_bad_files_are_refused_in_one_line(tmp_path) -> None:
    other = tmp_path / "other.npz"
    np.savez(other, weights=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="not a classifier file"):
        load_classifier(other)
    (tmp_path / "rows.jsonl").write_text('{"txt": 1}\n')
    with pytest.raises(SystemExit, match='line 1: expected an object with a "text" string'):
        main(["score", "--model", str(_model(tmp_path)), "--input", str(tmp_path / "rows.jsonl")])
    with pytest.raises(ValueError, match="expected texts of both classes, got 0 positive and 1 negative"):
        train([], ["text"])


def _model(folder):  # type: ignore[no-untyped-def]
    path = folder / "small.npz"
    train(["a b"], ["c d"], ClassifierConfig(buckets=64)).save(path)
    return path
