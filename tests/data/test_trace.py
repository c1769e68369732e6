"""A token leads back to its document and bytes, from the shards and from a batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.document import Document
from data.loader import LoaderConfig, open_loader
from data.token_reader import open_tokens
from data.tokenizer import load_tokenizer
from data.tokenizer_config import TokenizerConfig
from data.trace import byte_ends, trace, trace_row
from tests.data.token_data import build, stdlib_documents

EXTRA = Document(id="odd/1", text="<s> naïve Ω👩\u200d👧 \x00 end </s>", source="prose", meta={"split": "train"})
DOCUMENTS = (*stdlib_documents(8), EXTRA)


@pytest.fixture(scope="module", params=["bpe", "unigram", "byte_bpe"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = TokenizerConfig(kind=request.param, vocab_size=600, sample_bytes=60_000, num_threads=1)
    return build(tmp_path_factory.mktemp(request.param), DOCUMENTS, config=config)


def test_every_id_of_a_document_stands_for_the_next_bytes(dataset: Path) -> None:
    tokenizer, reader = load_tokenizer(dataset / "tokenizer"), open_tokens(dataset, "train")
    texts = {document.id: document.text for document in DOCUMENTS}
    for source, index in reader.index.items():
        for place, doc_id in list(enumerate(reader.doc_ids(source, np.arange(index.documents))))[::5]:
            ids = reader.document_ids(source, place).tolist()
            ends = byte_ends(tokenizer, ids, texts[doc_id])
            assert ends[0] == 0 and ends[-1] == len(texts[doc_id].encode()) and (np.diff(ends) >= 0).all()


def test_a_place_of_the_stream_is_traced(dataset: Path) -> None:
    reader = open_tokens(dataset, "train")
    index = reader.index["prose"]
    place = reader.doc_ids("prose", np.arange(index.documents)).index("odd/1")
    begin, count = int(index.begins[place]), int(index.num_tokens[place])
    found = [trace(dataset, "train", "prose", begin + n) for n in range(count)]
    content = EXTRA.text.encode()
    assert b"".join(content[one.start : one.stop] for one in found) == content
    assert {one.doc_id for one in found} == {"odd/1"} and [one.place for one in found] == list(range(count))
    assert found[0].text == found[-1].text == ""


def test_a_place_of_a_batch_is_traced(dataset: Path) -> None:
    loader = open_loader(dataset, LoaderConfig(seq_len=64, global_batch_size=4))
    batch, texts = loader.batch(3), {document.id: document.text for document in DOCUMENTS}
    for row, column in ((0, 0), (1, 5), (3, 20)):
        found = trace_row(loader, dataset, step=3, row=row, column=column)
        assert found.token == batch["inputs"][row, column]
        content = texts[found.doc_id].encode()
        assert content[found.start : found.stop].decode("utf-8", "replace") == found.text


def test_places_that_are_not_there_are_one_line(dataset: Path) -> None:
    tokenizer = load_tokenizer(dataset / "tokenizer")
    ids = [tokenizer.bos_id, *tokenizer.encode("some text"), tokenizer.eos_id]
    for call, message in (
        (lambda: trace(dataset, "train", "web", 0), "no source 'web' in train; it has code, prose"),
        (lambda: trace(dataset, "train", "prose", 10**9), "1000000000 is not among them"),
        (lambda: byte_ends(tokenizer, ids, "other text"), "is not what stands at byte"),
        (lambda: byte_ends(tokenizer, ids, "some text more"), "the ids end at byte 9 of 14"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
