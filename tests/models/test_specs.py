"""A checkpoint's location is all that a data stage needs for a scorer or a generator."""

import dataclasses

import pytest

from data.clean.perplexity import ScorePerplexity
from data.document import Document
from data.engine import LocalPool
from data.keys import plain
from data.tables import read_documents, write_documents
from models.checkpoints.load import load_checkpoint
from models.decode import DecodeConfig, Decoder
from models.generation import generate_texts
from models.scoring import Scorer, ScoringConfig
from models.specs import CheckpointGenerator, CheckpointScorer
from tests.models.checkpoint_cases import byte_tokenizer, save_tiny

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
DECODE = DecodeConfig(max_new_tokens=6, batch_size=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    save_tiny(path)
    return path


def test_a_scorer_is_built_from_a_location(folder):
    config = ScoringConfig(window=64, stride=32)
    loaded = load_checkpoint(folder)
    texts = ["hello", "a longer text than that"]
    built = CheckpointScorer(checkpoint=str(folder), scoring=config).build()
    assert built.score(texts) == Scorer(loaded.model, loaded.tokenizer, config).score(texts)


def test_a_generator_is_built_from_a_location_and_speaks_through_the_template(folder):
    prompts = ["ab", "hello there", "x"]  # more than the batch has rows
    spec = CheckpointGenerator(checkpoint=str(folder), decode=DECODE)
    with pytest.raises(ValueError, match="no chat template"):
        dataclasses.replace(spec, chat=True).build()
    dataclasses.replace(byte_tokenizer(), chat_template=TEMPLATE).save(folder)
    loaded = load_checkpoint(folder)
    decoder = Decoder(loaded.model)
    assert spec.build().generate(prompts) == generate_texts(decoder, loaded.tokenizer, prompts, DECODE)
    rendered = [f"s:be brief;u:{prompt};a:" for prompt in prompts]
    answers = dataclasses.replace(spec, chat=True, system="be brief").build().generate(prompts)
    assert answers == generate_texts(decoder, loaded.tokenizer, rendered, DECODE)
    assert spec.build().generate([]) == []


def test_the_perplexity_step_takes_the_spec(folder, tmp_path):
    step = ScorePerplexity(scorer=CheckpointScorer(checkpoint=str(folder)), batch_size=2)
    assert str(folder) in str(plain(step)), "the stage's key names the model"
    texts = ["hello", "a longer text than that", "x y z"]
    documents = [Document(id=str(i), text=text, source="a") for i, text in enumerate(texts)]
    write_documents(tmp_path / "a.parquet", documents)
    step.run([tmp_path / "a.parquet"], tmp_path / "out", LocalPool(workers=1))
    (shard,) = (tmp_path / "out" / "kept").glob("*.parquet")
    nats, tokens = step.scorer.build().score(texts)
    for document, nat, count in zip(read_documents(shard), nats, tokens):
        assert document.scores["tokens"] == count and document.scores["nats"] == pytest.approx(nat, abs=2e-3)
