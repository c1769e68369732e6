"""A batch again: the same loss to the last bit, and a planted bad document is named first."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from flax import nnx

from data.build import build_dataset, document_shards
from data.loader import open_loader
from data.tables import read_documents
from models.checkpoints.save import save_hf
from models.config import Attention, Embedding
from models.encoder import EncoderConfig
from models.lora import LoRA
from models.transformer import CausalLM
from tests.train.tiny import losses, run_config, tiny_model, train_config, write_corpus
from train.checkpoint import CheckpointConfig, Position
from train.loop import train
from train.masked import MaskedLM
from train.optimizer import AdamW
from train.replay import described, replay
from train.run_folder import prepare_run_folder

LLAMA = tiny_model(vocab_size=600, attention=Attention(), embedding=Embedding(tied=True))
NOISE = " ".join("".join(random.Random(word).choices("qxzjkvwQXZJ#%&", k=9)) for word in range(12))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """(folder, id of the planted document, loader config that reads it in step 6 to 10, that step)."""
    folder = tmp_path_factory.mktemp("planted")
    write_corpus(folder)
    with (folder / "prose.jsonl").open("a") as file:
        file.writelines(json.dumps({"text": NOISE, "group": f"planted{n}"}) + "\n" for n in range(2))
    config = run_config(folder)
    dataset = build_dataset(config.data)
    documents = [document for shard in document_shards(dataset) for document in read_documents(shard)]
    ids = {document.id for document in documents if document.text == NOISE}
    for seed in range(200):
        loading = replace(config.loader, seed=seed)
        loader = open_loader(dataset, loading)
        for number in range(5, 10):
            for row in loader.rows_of(number):
                if ids & set(row.doc_ids):
                    return folder, (ids & set(row.doc_ids)).pop(), loading, number + 1
    raise AssertionError("no seed reads it early")


def test_a_planted_document_is_named_and_the_loss_is_the_logged_one(planted, tmp_path, own_mesh):
    folder, bad, loading, step = planted
    config = run_config(
        folder, run_dir=str(tmp_path / "run"), loader=loading, checkpoint=CheckpointConfig(every_steps=4, keep=9)
    )
    assert train(config, folder / "dataset") == 0
    for number in (2, step):  # from the beginning, and from a checkpoint
        again = replay(tmp_path / "run", number)
        assert again.loss.hex() == losses(tmp_path / "run")[number].hex()
    with pytest.raises(ValueError, match=r"--step 13: .*/run has come to step 12 of 12"):
        replay(tmp_path / "run", 13)
    assert again.before == 4 * ((step - 1) // 4)
    assert again.pieces[0].doc_id == bad
    text = described(again, step, folder / "dataset", 3)
    assert (
        bad in text
        and NOISE[:60] in text
        and f"loader.skip=(({again.pieces[0].row}, {again.pieces[0].row + 1}),)" in text
    )


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    """What a run may begin from instead of random weights."""
    folder = tmp_path_factory.mktemp("base")
    save_hf(CausalLM(LLAMA, rngs=nnx.Rngs(3)), folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "lora, base_weights",
    [(None, False), (LoRA(dropout=0.1), True), (LoRA(dropout=0.1), False)],
    ids=["whole model", "adapters and base", "adapters alone"],
)
def test_a_run_from_old_weights_is_made_again(corpus, base_folder, tmp_path, own_mesh, lora, base_weights):
    kept = CheckpointConfig(every_steps=4, keep=9, base_weights=base_weights)
    begin = {"model": LLAMA, "init_from": str(base_folder), "optimizer": AdamW(learning_rate=1e-2), "lora": lora}
    config = run_config(
        corpus, run_dir=str(tmp_path / "run"), train=train_config(num_steps=6), checkpoint=kept, **begin
    )
    assert train(config, corpus / "dataset") == 0
    for number, before in ((2, 0), (6, 4)):  # from the base, and from a checkpoint
        again = replay(tmp_path / "run", number)
        assert again.before == before and again.loss.hex() == losses(tmp_path / "run")[number].hex()


@pytest.mark.slow
def test_adapters_are_not_replayed_over_other_weights(corpus, tmp_path, own_mesh):
    base, lora = tmp_path / "base", LoRA(targets="all-linear")
    save_hf(CausalLM(LLAMA, rngs=nnx.Rngs(3)), base)
    kept = CheckpointConfig(every_steps=1, keep=9)
    config = run_config(
        corpus, run_dir=str(tmp_path / "run"), train=train_config(num_steps=2), checkpoint=kept, model=LLAMA, lora=lora,
        init_from=str(base),
    )  # fmt: skip
    assert train(config, corpus / "dataset") == 0
    save_hf(CausalLM(LLAMA, rngs=nnx.Rngs(4)), base)
    with pytest.raises(ValueError, match=r"was trained on other weights than .*bring the old ones back"):
        replay(tmp_path / "run", 2)


def test_runs_that_cannot_be_made_again_are_refused_in_one_line(corpus, tmp_path, own_mesh):
    model = EncoderConfig(vocab_size=600, embed_dim=32, num_layers=1, num_heads=2, mlp_dim=48, mask_id=4)
    encoder = run_config(corpus, run_dir=str(tmp_path / "run"), model=model, objective=MaskedLM())
    prepare_run_folder(tmp_path / "run", encoder, corpus / "dataset", Position(step=0, row=0, tokens_per_row=1.0))
    with pytest.raises(ValueError, match="trained an encoder"):
        replay(tmp_path / "run", 1)


def test_the_described_step_makes_keys_for_what_the_loop_makes_them_for(corpus):
    """Both take `Config.draws`: masks that were drawn otherwise would be other masks."""
    plain = run_config(corpus)
    assert not plain.draws and not replace(plain, lora=LoRA(dropout=0.0)).draws
    assert replace(plain, objective=MaskedLM()).draws and replace(plain, lora=LoRA(dropout=0.1)).draws


def test_a_skipped_row_has_weight_0_and_nothing_else_moves(planted):
    folder, _, loading, step = planted
    row = (step - 1) * loading.global_batch_size + 1
    plain = open_loader(folder / "dataset", loading)
    skipping = open_loader(folder / "dataset", replace(loading, skip=((row, row + 1),)))
    for number in range(step + 2):
        before, after = plain.batch(number), skipping.batch(number)
        if number == step - 1:
            assert after["loss_weights"][1].sum() == 0 and before["loss_weights"][1].sum() > 0
            before["loss_weights"][1] = 0
        assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_changed_batch_size_is_refused_or_carries_on_from_the_same_row(planted, tmp_path, own_mesh, capsys):
    folder, *_ = planted
    half = train_config(num_steps=4)
    config = run_config(folder, run_dir=str(tmp_path / "run"), train=half)
    assert train(config, folder / "dataset") == 0
    wider = replace(config, loader=replace(config.loader, global_batch_size=8), train=train_config(num_steps=8))
    with pytest.raises(
        ValueError, match=r"loader\.global_batch_size=4, this config has 8; .*checkpoint\.carry_on=True"
    ):
        train(wider, folder / "dataset")
    wider = replace(wider, checkpoint=replace(config.checkpoint, carry_on=True))
    assert train(wider, folder / "dataset") == 0
    assert "changed      loader.global_batch_size: 4 -> 8" in capsys.readouterr().out
    again = replay(tmp_path / "run", 5)
    assert [row.row for row in again.rows] == list(range(16, 24))  # after the 4 x 4 rows of the first part
    assert again.loss.hex() == losses(tmp_path / "run")[5].hex()
    assert [row.row for row in replay(tmp_path / "run", 3).rows] == list(range(8, 12))
