"""Multiple choice by likelihood: which continuation of a question the model finds likeliest.

    questions = read_questions(Path("arc.jsonl"))          # {"question": ..., "choices": [...], "answer": 2}
    scores = choice_scores(scorer, *encode_questions(tokenizer, questions))
    choice_accuracy(scores, questions)

The numbers are those of the lm-evaluation-harness for the same prompts (`acc`, `acc_norm`): a choice is scored after
its question and one space, as the tokens that the whole text has beyond those of the question.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.scoring import DocumentTokenizer, Scorer

DELIMITER = " "  # between question and choice; the harness's `target_delimiter`


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt, its continuations, and the place of the right one."""

    question: str
    choices: tuple[str, ...]
    answer: int


def read_questions(path: Path) -> list[Question]:
    """Questions of a JSON Lines file; ValueError names the line that is none.

    `answer` is the place of the right choice, from 0, or the choice itself.
    """
    questions = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    questions.append(_question(json.loads(line)))
                except (ValueError, KeyError, TypeError) as error:
                    reason = f"lacks {error}" if isinstance(error, KeyError) else error
                    raise ValueError(
                        f"{path}, line {number} is no question ({reason}): expected "
                        '{"question": text, "choices": [text, text, ...], "answer": place from 0 or one of the choices}'
                    ) from None
    if not questions:
        raise ValueError(f"{path} holds no questions")
    return questions


def _question(found: Any) -> Question:
    question, choices, answer = found["question"], found["choices"], found["answer"]
    if not isinstance(question, str) or not question.strip():
        raise ValueError("its question is empty or no text")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise ValueError("its choices are not a list of at least two texts")
    if isinstance(answer, str):
        if choices.count(answer) != 1:
            raise ValueError(f"its answer {answer!r} is not one of its choices")
        answer = choices.index(answer)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise ValueError(f"its answer {answer!r} is no place among {len(choices)} choices")
    return Question(question=question, choices=tuple(choices), answer=answer)


def encode_questions(
    tokenizer: DocumentTokenizer, questions: Sequence[Question]
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """(ids of every question, ids of each of its choices). Spaces that end a question belong to the choices.

    Question and choice are encoded together and cut where the question's own ids end, since a word at the start of a
    text has other ids than the same word after a space.
    """
    contexts, continuations = [], []
    for question in questions:
        stem = question.question.rstrip(" ")
        tail = question.question[len(stem) :] or DELIMITER
        context = tokenizer.encode_prompt(stem)
        contexts.append(context)
        continuations.append([tokenizer.encode_prompt(stem + tail + c)[len(context) :] for c in question.choices])
    return contexts, continuations


def choice_scores(
    scorer: Scorer, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]]
) -> list[list[float]]:
    """Log-likelihood of every continuation after its context, nats, at most 0."""
    documents = [[*context, *ids] for context, group in zip(contexts, continuations) for ids in group]
    nats = iter(scorer.token_nats(documents))
    return [
        [-float(np.sum(next(nats)[len(context) - 1 :], dtype=np.float64)) for _ in group]
        for context, group in zip(contexts, continuations)
    ]


def choice_accuracy(scores: Sequence[Sequence[float]], questions: Sequence[Question]) -> tuple[float, float]:
    """(accuracy, accuracy of the log-likelihood divided by the characters of the choice): `acc` and `acc_norm`."""
    if not scores:
        raise ValueError("no questions: expected at least one")
    plain = normed = 0
    for row, question in zip(scores, questions):
        values, lengths = np.asarray(row), np.array([len(choice) for choice in question.choices])
        plain += int(np.argmax(values)) == question.answer
        normed += int(np.argmax(values / lengths)) == question.answer
    return plain / len(scores), normed / len(scores)
