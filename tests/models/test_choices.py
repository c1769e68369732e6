"""Multiple choice: scores are the nats of the choice's own tokens, accuracies are those of the harness."""

import json

import pytest

from models.choices import (
    Question,
    choice_accuracy,
    choice_scores,
    encode_questions,
    read_questions,
)
from models.scoring import Scorer
from tests.models.checkpoint_cases import byte_tokenizer, tiny_model

QUESTIONS = [
    Question(question="2 + 2 =", choices=("4", "five", "a fish"), answer=0),
    Question(question="The sky is ", choices=("blue", "un"), answer=1),
]


@pytest.fixture(scope="module")
def scorer():
    return Scorer(tiny_model(), byte_tokenizer())


def test_a_choice_is_scored_after_its_question_and_a_space(scorer):
    tokenizer = scorer.tokenizer
    scores = choice_scores(scorer, *encode_questions(tokenizer, QUESTIONS))
    for question, found in zip(QUESTIONS, scores):
        stem = len(tokenizer.encode_prompt(question.question.rstrip()))
        for choice, score in zip(question.choices, found):
            nats = scorer.token_nats([tokenizer.encode_prompt(f"{question.question.rstrip()} {choice}")])[0]
            assert score == pytest.approx(-float(nats[stem - 1 :].sum()), rel=1e-5)


def test_accuracy_takes_the_likeliest_as_it_is_or_by_character():
    scores = [[-1.0, -3.0, -4.0], [-8.0, -5.0]]  # by character: -1, -0.75, -0.67 and -2, -2.5
    assert choice_accuracy(scores, QUESTIONS) == (1.0, 0.0)
    with pytest.raises(ValueError, match="at least one"):
        choice_accuracy([], [])


def test_questions_are_read_with_the_answer_as_a_place_or_as_text(tmp_path):
    lines = [
        {"question": "a?", "choices": ["x", "y"], "answer": 1},
        {"question": "b?", "choices": ["x", "y"], "answer": "x"},
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n\n" for line in lines))
    assert [question.answer for question in read_questions(tmp_path / "q.jsonl")] == [1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 2}, "2 is no place among 2 choices"),
        ({"answer": "z"}, "'z' is not one of its choices"),
        ({"choices": ["only"]}, "at least two"),
        ({"question": " "}, "empty"),
    ],
)
def test_bad_questions_are_named_by_their_line(tmp_path, change, message):
    line = json.dumps({"question": "a?", "choices": ["x", "y"], "answer": 1} | change)
    (tmp_path / "q.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(ValueError, match=f"line 2 is no question .*{message}"):
        read_questions(tmp_path / "q.jsonl")
    (tmp_path / "q.jsonl").write_text('{"question": "a?"}\n')
    with pytest.raises(ValueError, match="lacks 'choices'"):
        read_questions(tmp_path / "q.jsonl")
