"""BOS + ids + EOS, exact byte counts, loss spans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.document import Document
from data.tables import write_documents
from data.tokenize import token_dtype, tokenize
from data.tokenizer import Tokenizer
from data.tokenizer_train import train_tokenizer
from tests.data.token_data import SMALL, stdlib_documents


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_documents(folder / "d.parquet", stdlib_documents())
    return train_tokenizer(SMALL, [folder / "d.parquet"], folder)


def document(text: str, **meta: object) -> Document:
    return Document(id="d", text=text, source="s", meta=meta)


def test_documents_come_in_order_with_bos_ids_eos(tokenizer: Tokenizer) -> None:
    documents = stdlib_documents()
    made = list(tokenize(iter(documents), tokenizer))
    assert [d for d, _ in made] == list(documents)
    for d, tokens in made:
        assert tokens.ids.dtype == np.uint16
        assert tokens.ids.tolist() == [tokenizer.bos_id, *tokenizer.encode(d.text), tokenizer.eos_id]
        assert tokens.num_bytes == len(d.text.encode())
        assert tokens.loss_weights is None


def test_bytes_are_utf8_bytes(tokenizer: Tokenizer) -> None:
    for text in ("", "abc", "äöü", "日本語", "👩‍👩‍👧", "a\0b"):
        ((_, tokens),) = tokenize([document(text)], tokenizer)
        assert tokens.num_bytes == len(text.encode("utf-8"))
        assert len(tokens.ids) >= 2


def test_width_follows_the_vocabulary() -> None:
    assert token_dtype(65_536) == np.uint16
    assert token_dtype(65_537) == np.uint32


def test_loss_spans_weigh_their_own_tokens(tokenizer: Tokenizer) -> None:
    prompt, answer = "def question(x):\n    ", "return x + 1"
    text = prompt + answer
    ((_, tokens),) = tokenize([document(text, loss_spans=[[len(prompt), len(text)]])], tokenizer)
    assert tokens.loss_weights is not None
    assert len(tokens.loss_weights) == len(tokens.ids)
    learned = tokens.ids[tokens.loss_weights == 1].tolist()
    assert learned == [*tokenizer.encode(answer), tokenizer.eos_id]
    assert tokenizer.decode(tokens.ids[1:-1].tolist()) == text
    ((_, inner),) = tokenize([document(text, loss_spans=[[0, 3], [4, 8]])], tokenizer)
    assert inner.loss_weights is not None
    assert tokenizer.decode(inner.ids[inner.loss_weights == 1].tolist()) == text[:3] + text[4:8]
    assert inner.loss_weights[0] == inner.loss_weights[-1] == 0


@pytest.mark.parametrize("spans", [[[0, 99]], [[3, 3]], [[2, 4], [3, 5]], [[-1, 2]]])
def test_impossible_loss_spans_are_refused(tokenizer: Tokenizer, spans: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="document d: loss span"):
        list(tokenize([document("abcdef", loss_spans=spans)], tokenizer))


def test_batches_do_not_show(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    documents = stdlib_documents(10)
    whole = [tokens.ids.tobytes() for _, tokens in tokenize(documents, tokenizer)]
    monkeypatch.setattr("data.tokenize.BATCH_DOCUMENTS", 3)
    monkeypatch.setattr("data.tokenize.BATCH_CHARS", 500)
    assert [tokens.ids.tobytes() for _, tokens in tokenize(documents, tokenizer)] == whole
