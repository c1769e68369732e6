"""The masked objective: what is hidden, what it costs, and a whole run that resumes and leaves as a BERT folder."""

import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data.augment.masked import MaskedReplacement
from data.augment.plan import LINEAGE
from data.augment.stage import Augment
from data.build import build_dataset, document_shards
from data.heldout import HeldOut
from data.tables import read_documents
from models.checkpoints.encoder_run import export_encoder_run
from models.encoder import EncoderConfig, EncoderLM
from models.fill import MaskedFiller
from models.rows import DROPOUT_KEYS, row_keys
from tests.data.augment.cases import Stories, make_config
from tests.train.tiny import VOCAB, losses, random_batch, run_config, train_config
from train.evaluation import EvaluationConfig
from train.loop import train
from train.masked import MaskedLM, hidden_losses, hide, masked_objective
from train.masked_scores import masked_scores
from train.optimizer import AdamW
from train.state import merge
from train.step import TrainConfig, accumulate

STEPS = 700  # after which a tiny encoder knows more than how often each piece comes


def device_batch(seed: int) -> dict[str, jax.Array]:
    return jax.tree.map(jnp.asarray, random_batch(seed))


def tiny_encoder(vocab_size: int = VOCAB) -> EncoderConfig:
    return EncoderConfig(
        vocab_size=vocab_size + 1,
        mask_id=vocab_size,
        num_layers=1,
        embed_dim=32,
        num_heads=4,
        mlp_dim=48,
        max_positions=64,
        num_types=1,
    )


@pytest.fixture(scope="module")
def hidden():
    """(places, which are real, tokens shown, tokens, which may be hidden) of many rows."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, (256, 64)).astype(np.int32)
    maskable = (np.arange(64) % 20 > 0) & (np.arange(64) < rng.integers(1, 65, 256)[:, None])
    keys = row_keys(3, jnp.int32(7), 256)
    run = jax.jit(partial(hide, settings=MaskedLM(), mask_id=VOCAB, vocab_size=VOCAB + 1))
    return (*map(np.asarray, run(tokens, maskable, keys)), tokens, maskable)


def test_a_fixed_share_of_each_row_is_hidden_and_never_bos_or_padding(hidden):
    places, real, shown, tokens, maskable = hidden
    number = maskable.sum(axis=1)
    assert (real.sum(axis=1) == np.minimum(number, np.maximum(1, np.round(0.15 * number)))).all()
    at = np.zeros_like(maskable)
    rows = np.repeat(np.arange(len(at)), real.sum(axis=1))
    at[rows, places[real]] = True
    assert at.sum() == real.sum(), "no place twice"
    assert not (at & ~maskable).any()
    assert (shown == tokens)[~at].all()


def test_of_the_hidden_tokens_four_fifths_are_masks_and_a_tenth_is_random(hidden):
    places, real, shown, tokens, _ = hidden
    new = np.take_along_axis(shown, places, axis=1)[real]
    old = np.take_along_axis(tokens, places, axis=1)[real]
    assert abs((new == VOCAB).mean() - 0.8) < 0.04 and abs((new == old).mean() - 0.1) < 0.03


def test_what_a_row_hides_depends_on_its_key_alone():
    batch = device_batch(1)
    maskable = (batch["segment_ids"] > 0) & (batch["positions"] > 0)
    keys = row_keys(0, jnp.int32(5), 8)
    run = partial(hide, settings=MaskedLM(share=0.4), mask_id=VOCAB, vocab_size=VOCAB + 1)
    whole = run(batch["inputs"], maskable, keys)[2]
    part = run(batch["inputs"][5:], maskable[5:], keys[5:])[2]
    assert (np.asarray(whole)[5:] == np.asarray(part)).all()
    assert (np.asarray(run(batch["inputs"], maskable, row_keys(0, jnp.int32(6), 8))[2]) != np.asarray(whole)).any()


@pytest.fixture(scope="module")
def model():
    return EncoderLM(tiny_encoder(), rngs=nnx.Rngs(0))


def test_the_loss_is_that_of_the_logits_at_the_hidden_places(model):
    model.head.bias.set_value(jnp.linspace(-1.0, 1.0, VOCAB + 1))
    batch = device_batch(2) | {DROPOUT_KEYS: row_keys(0, jnp.int32(1), 8)}
    settings = MaskedLM(share=0.3)
    maskable = (batch["segment_ids"] > 0) & (batch["positions"] > 0)
    places, real, shown = hide(
        batch["inputs"], maskable, batch[DROPOUT_KEYS], settings, mask_id=VOCAB, vocab_size=VOCAB + 1
    )
    logits = model.logits(model(shown, batch["segment_ids"], batch["positions"]))
    log_p = np.asarray(jax.nn.log_softmax(logits))
    rows = np.arange(8)[:, None]
    expected = -log_p[rows, places, batch["inputs"][rows, places]][np.asarray(real)]
    found, again = hidden_losses(model, batch, batch[DROPOUT_KEYS], settings, None)
    assert (np.asarray(again) == np.asarray(real)).all()
    np.testing.assert_allclose(np.asarray(found)[np.asarray(real)], expected, atol=1e-5)
    total, sums = masked_objective(model, batch, settings=settings)
    np.testing.assert_allclose([total, sums["weight"]], [expected.sum(), len(expected)], rtol=1e-5)


def test_micro_batches_have_the_gradients_of_the_whole_batch(model):
    graph, state = nnx.split(model)
    batch = device_batch(3) | {DROPOUT_KEYS: row_keys(0, jnp.int32(1), 8)}
    objective = partial(masked_objective, settings=MaskedLM())
    params = nnx.to_pure_dict(state)
    whole = jax.jit(partial(accumulate, objective, graph, micro_batches=1))(params, batch)
    parts = jax.jit(partial(accumulate, objective, graph, micro_batches=4))(params, batch)
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), parts, whole)
    assert merge(graph, params).config == model.config


def test_settings_that_make_no_sense_are_one_line():
    with pytest.raises(ValueError, match="expected 0 < share < 1"):
        MaskedLM(share=0.0)
    with pytest.raises(ValueError, match=r"objective=Preference"):
        MaskedLM().check(None, paired=True)
    with pytest.raises(ValueError, match=r"train.z_loss=0.001 is of objective=NextToken"):
        MaskedLM().make(TrainConfig(num_steps=1, z_loss=1e-3))


@pytest.mark.slow
def test_a_run_resumes_exactly_and_its_export_is_a_bert_that_transformers_loads(corpus, tmp_path, own_mesh):
    changes = {
        "model": tiny_encoder(600),
        "objective": MaskedLM(),
        "optimizer": AdamW(learning_rate=3e-3),
        "train": train_config(num_steps=8, ema_decay=None, compilation_cache=str(corpus / "cache")),
        "evaluation": EvaluationConfig(every_steps=6, max_bytes=4000, max_final_bytes=8000, prompts=()),
    }
    whole, stopped = (run_config(corpus, run_dir=str(tmp_path / name), **changes) for name in ("whole", "stopped"))
    dataset = corpus / "dataset"
    assert train(whole, dataset) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "8")
    assert train(stopped, dataset) == 0
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole") and len(losses(tmp_path / "whole")) == 8

    scores = masked_scores(tmp_path / "whole", batches=5)
    assert scores["hidden_tokens"] > 100 and 0 < scores["nats"] < 8 and 0 < scores["unigram_nats"] < 8
    ours = export_encoder_run(tmp_path / "whole", tmp_path / "bert")
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "bert").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "bert")
    assert tokenizer.mask_token_id == 600
    ids = np.array([tokenizer("Return the [MASK] of a list.")["input_ids"]])
    assert (ids == 600).sum() == 1
    with torch.no_grad():
        wanted = theirs(input_ids=torch.tensor(ids)).logits.numpy()
    found = ours.logits(ours(jnp.asarray(ids), jnp.ones_like(ids), jnp.arange(ids.shape[1])[None]))
    np.testing.assert_allclose(np.asarray(found), wanted, atol=1e-4)
    for place in ("whole", "bert"):
        filler = MaskedFiller(checkpoint=str(tmp_path / place)).build()
        assert filler.mask_id == 600 and sum(word is not None for word in filler.words) > 20


@pytest.mark.slow
@pytest.mark.long  # a minute and a half of a core
def test_a_short_run_beats_a_unigram_model_and_its_words_pass_the_gates(corpus, tmp_path, own_mesh):
    config = run_config(
        corpus,
        run_dir=str(tmp_path / "run"),
        model=tiny_encoder(600),
        objective=MaskedLM(),
        optimizer=AdamW(learning_rate=5e-3),
        train=train_config(num_steps=STEPS, ema_decay=None, compilation_cache=str(corpus / "cache")),
        evaluation=EvaluationConfig(every_steps=STEPS, max_bytes=4000, max_final_bytes=4000, prompts=()),
    )
    assert train(config, corpus / "dataset") == 0
    scores = masked_scores(tmp_path / "run", batches=20)
    assert scores["nats"] < scores["unigram_nats"], scores
    technique = MaskedReplacement(filler=MaskedFiller(checkpoint=str(tmp_path / "run")), share=0.1)
    stages = (HeldOut(fraction=0.2), Augment(technique=technique, factor=2.0))
    dataset = build_dataset(make_config(tmp_path / "data", sources=(Stories(),), stages=stages))
    copies = [d for path in document_shards(dataset) for d in read_documents(path) if LINEAGE in d.meta]
    assert len(copies) > 5, "replacements of the trained model pass the gates"
