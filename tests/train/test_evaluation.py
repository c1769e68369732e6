"""Bits per byte count every token of every document; compressors see the same documents."""

import gzip
import lzma
import math

import jax
import numpy as np
import pytest
from flax import nnx

from data.build import document_shards
from data.loader import LoaderConfig
from data.tables import read_documents
from data.tokenizer import load_tokenizer
from models.sharding import MeshConfig, make_mesh
from models.transformer import CausalLM
from tests.train.tiny import tiny_model
from train.evaluation import Score, compressed_scores, evaluated, heldout_scores, open_heldout_rows
from train.loss import next_token_nats
from train.state import merge

CONFIG = LoaderConfig(seq_len=64, global_batch_size=4)


def heldout_documents(corpus):
    documents = [d for shard in document_shards(corpus / "dataset") for d in read_documents(shard)]
    return [document for document in documents if document.meta["split"] == "heldout"]


def test_every_token_counts_the_first_after_bos_and_eos_too(corpus):
    """A fresh model in place of a trained one: its nats, token by token and document by document, without packing."""
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        graphdef, state = nnx.split(CausalLM(tiny_model(vocab_size=600), rngs=nnx.Rngs(0)))
        params = nnx.to_pure_dict(state)
        rows = open_heldout_rows(corpus / "dataset", CONFIG, max_bytes=3000)
        scores = heldout_scores(evaluated(next_token_nats, graphdef, mesh), params, rows, mesh)

        tokenizer = load_tokenizer(corpus / "dataset" / "tokenizer")
        texts = {document.id: document.text for document in heldout_documents(corpus)}
        model = merge(graphdef, params)
        logits = jax.jit(lambda ids, segments, places: model.logits(model(ids, segments, places)))
        for source, part in rows.items():
            nats, num_bytes = 0.0, 0
            for name in part.reader.doc_ids(source, np.arange(part.num_documents)):
                ids = np.array([tokenizer.bos_id, *tokenizer.encode(texts[name]), tokenizer.eos_id])
                num_bytes += len(texts[name].encode())
                for start in range(0, len(ids) - 1, CONFIG.seq_len):  # windows, as documents longer than a row are read
                    window = ids[start : start + CONFIG.seq_len + 1]
                    padded = np.zeros((1, CONFIG.seq_len), np.int32)
                    padded[0, : len(window) - 1] = window[:-1]
                    segments = (np.arange(CONFIG.seq_len) < len(window) - 1).astype(np.int32)[None]
                    log_p = jax.nn.log_softmax(logits(padded, segments, np.arange(CONFIG.seq_len)[None]))[0]
                    nats -= sum(float(log_p[place, token]) for place, token in enumerate(window[1:].tolist()))
            assert scores[source].num_bytes == num_bytes
            assert scores[source].nats == pytest.approx(nats, rel=1e-5)
        assert scores["all"].nats == pytest.approx(sum(scores[source].nats for source in rows))


def test_bits_per_byte_are_bits_per_byte():
    assert Score(nats=80 * math.log(2), num_bytes=10).bits_per_byte == pytest.approx(8.0)


def test_compressors_get_the_documents_that_the_model_gets(corpus):
    rows = open_heldout_rows(corpus / "dataset", CONFIG)
    scores = compressed_scores(corpus / "dataset", rows)
    documents = heldout_documents(corpus)
    for source in ("prose", "code"):
        texts = [document.text.encode() for document in documents if document.source == source]
        size = sum(map(len, texts))
        assert size == rows[source].num_bytes
        alone = sum(len(gzip.compress(text, 9)) for text in texts)
        assert scores["gzip"][source] == pytest.approx(8 * alone / size)
        assert scores["xz"][source] == pytest.approx(
            8 * sum(len(lzma.compress(t, preset=9)) for t in texts) / size, rel=1e-3
        )
        whole = len(lzma.compress(b"".join(texts), preset=9))
        assert scores["xz_stream"][source] == pytest.approx(8 * whole / size, rel=1e-3)
    assert scores["xz_stream"]["all"] < scores["xz"]["all"]
