"""A checkpoint's location is all that a data stage needs for a scorer or a generator."""

import dataclasses
import shutil

import pytest

from data.clean.perplexity import ScorePerplexity
from data.document import Document
from data.engine import LocalPool
from data.keys import plain
from data.tables import read_documents, write_documents
from models.checkpoints.load import load_checkpoint
from models.decode import DecodeConfig, Decoder
from models.generation import generate_texts, generate_with_reasons
from models.sampling import SamplingConfig
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


def test_an_answer_is_a_function_of_its_prompt_and_seed_and_none_where_it_was_cut(folder):
    sampling = SamplingConfig(temperature=1.5, seed=3)
    decode = dataclasses.replace(DECODE, sampling=sampling, stop_ids=tuple(range(97, 104)), max_new_tokens=8)
    generator = CheckpointGenerator(checkpoint=str(folder), decode=decode).build()
    prompts, seeds = ["ab", "hello there", "x", "ab", "ab", "yes"], [7, 2**63 + 5, 1, 8, 7, 12]
    answers = generator.answers(prompts, seeds)
    assert generator.answers(prompts[::-1], seeds[::-1])[::-1] == answers
    assert [generator.answers([prompt], [seed])[0] for prompt, seed in zip(prompts, seeds)] == answers
    assert answers[0] == answers[4], "the same prompt and seed again"
    many = generator.answers(["ab"] * 24, list(range(24)))
    assert len(set(many)) > 3 and None in many and any(many), "some were cut, some ended by themselves"
    found = generate_with_reasons(generator.decoder, generator.tokenizer, ["ab"] * 24, decode, list(range(24)))
    assert [text if reason == "stop" else None for text, reason in found] == many
    assert generator.generate(prompts) == [text for text, _ in found_in_order(generator, prompts, decode)]


def found_in_order(generator, prompts, decode):
    return generate_with_reasons(generator.decoder, generator.tokenizer, prompts, decode, list(range(len(prompts))))


def test_a_spec_says_which_files_it_reads(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for spec in (CheckpointScorer, CheckpointGenerator):
        key = spec(checkpoint=str(copy)).inputs_key()
        assert key == spec(checkpoint=str(folder)).inputs_key()
        (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
        assert spec(checkpoint=str(copy)).inputs_key() != key, "another model at the same path"
        (copy / "config.json").write_bytes((folder / "config.json").read_bytes())
        (tmp_path / "one.gguf").write_bytes(b"GGUF")
        assert spec(checkpoint=str(tmp_path / "one.gguf")).inputs_key() != key
        assert spec(checkpoint="hf:org/name@main").inputs_key() == "hf:org/name@main"
        with pytest.raises(ValueError, match=r"no checkpoint at .*nothing: expected a folder"):
            spec(checkpoint=str(tmp_path / "nothing")).inputs_key()


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
