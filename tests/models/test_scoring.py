"""Scores do not depend on packing, bucketing or batches; windows score every token once."""

import math

import numpy as np
import pytest

from models.parity import our_logits
from models.score import read_documents
from models.scoring import Scorer, ScoringConfig, cut_pieces
from tests.models.checkpoint_cases import VOCAB, byte_tokenizer, tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def _nats(logits: np.ndarray, ids: list[int]) -> np.ndarray:
    wide = logits.astype(np.float64)
    log_sum = np.log(np.exp(wide - wide.max(-1, keepdims=True)).sum(-1)) + wide.max(-1)
    return (log_sum - wide[np.arange(len(ids)), [*ids[1:], 0]])[:-1]


def _documents() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, VOCAB, length).tolist() for length in (40, 3, 1, 120, 0, 77, 200, 2)]


def test_packed_scores_equal_one_document_at_a_time(model):
    documents = _documents()
    nats = Scorer(model, config=ScoringConfig(window=256, stride=128, batch_tokens=512)).token_nats(documents)
    padded = np.zeros(200, np.int32)
    for document, found in zip(documents, nats):
        assert len(found) == max(0, len(document) - 1)
        if found.size:
            padded[: len(document)] = document
            expected = _nats(our_logits(model, padded)[: len(document)], document)
            np.testing.assert_allclose(found, expected, atol=2e-4)


def test_windows_give_every_token_once_with_the_stated_context(model):
    document = _documents()[6]
    pieces = cut_pieces([len(document)], ScoringConfig(window=64, stride=24))
    targets = [place for piece in pieces for place in range(piece.first_target, piece.end)]
    assert targets == list(range(1, 200))
    assert all(piece.first_target - piece.start >= 64 - 24 for piece in pieces[1:])
    nats = Scorer(model, config=ScoringConfig(window=64, stride=24)).token_nats([document])[0]
    for piece in pieces:
        ids = document[piece.start : piece.end]
        padded = np.zeros(64, np.int32)
        padded[: len(ids)] = ids
        expected = _nats(our_logits(model, padded)[: len(ids)], ids)
        found = nats[piece.first_target - 1 : piece.end - 1]
        np.testing.assert_allclose(found, expected[piece.first_target - piece.start - 1 :], atol=2e-4)


def test_texts_become_nats_and_token_counts(model):
    nats, tokens = Scorer(model, byte_tokenizer()).score(["hello", "", "a"])
    assert tokens == [4, 0, 0] and nats[1] == nats[2] == 0.0 and nats[0] > 0


@pytest.mark.parametrize("token", [-1, VOCAB])
def test_an_id_that_the_vocabulary_lacks_is_refused(model, token):
    with pytest.raises(ValueError, match=f"document 1 has id {token}, the vocabulary {VOCAB}"):
        Scorer(model).score_ids([[3, 4], [3, token, 5]])


@pytest.mark.parametrize("line", ['{"text": null}', '{"text": 3}', '{"id": 1}', "[1]", "{"])
def test_a_line_without_a_text_is_named(tmp_path, line):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r'texts.jsonl, line 2: expected a JSON object with a "text" field, a string'):
        read_documents(path)


def test_a_uniform_model_costs_log_vocabulary(model):
    import jax
    from flax import nnx

    graph, state = nnx.split(model)
    flat = nnx.merge(graph, jax.tree.map(lambda leaf: leaf * 0, state))
    nats, tokens = Scorer(flat).score_ids([list(range(3, 60))])
    assert nats[0] / tokens[0] == pytest.approx(math.log(VOCAB), rel=1e-5)
