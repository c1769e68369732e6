"""Several adapters in one run: each learns from the rows of its own sources, and from nothing else."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from data.heldout_loader import open_heldout
from data.loader import LoaderConfig, open_loader
from data.rows import adapter_numbers
from models.checkpoints.load import load_checkpoint
from models.checkpoints.peft import load_peft
from models.checkpoints.peft_folder import read_adapter
from models.checkpoints.save import save_hf
from models.lora import LoRA, without_lora
from models.parity import our_logits
from models.rows import ADAPTER_IDS
from models.sharding import batch_sharding
from models.tuning import Tuning
from tests.models.checkpoint_cases import tiny_config, tiny_model
from tests.train.test_tuning import Tuner
from tests.train.tiny import random_batch, run_config, train_config
from train.checkpoint import CheckpointConfig
from train.evaluation import EvaluationConfig
from train.export import run as export
from train.loop import train
from train.optimizer import AdamW
from train.replay import replay

NAMES = ("prose", "code")
PAIRS = (("prose", "prose"), ("code", "code"))
LORA = LoRA(targets=("q", "down", "embedding"), rank=4, dropout=0.0, names=NAMES)


def halves(tree: dict) -> list[list[np.ndarray]]:
    """Every leaf of the adapters, cut by adapter."""
    leaves = [(path[-1].key, np.asarray(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    return [[leaf[..., number, :, :] for _, leaf in leaves] for number in range(len(NAMES))]


def steps(batches: list[dict], **options) -> list[list[np.ndarray]]:
    """The adapters after a step on each batch."""
    tuner = Tuner(Tuning(lora=LORA), optimizer=AdamW(learning_rate=1e-2, weight_decay=0.0), clip_norm=None, **options)
    with jax.set_mesh(tuner.mesh):
        for batch in batches:
            placed = {name: jax.device_put(array, batch_sharding(tuner.mesh)) for name, array in batch.items()}
            tuner.state, _ = tuner.step(tuner.state, placed)
    return halves(tuner.state.params)


def mixed_batch(seed: int, others: int) -> dict[str, np.ndarray]:
    """Even rows are of adapter 0, drawn by `seed`; odd rows of adapter 1, drawn by `others`; all tokens have loss."""
    batch = {
        name: np.where((np.arange(8) % 2 == 0)[:, None], mine, other)
        for (name, mine), other in zip(random_batch(seed).items(), random_batch(others).values())
    }
    batch["segment_ids"] = np.ones_like(batch["segment_ids"])
    batch["positions"] = np.broadcast_to(np.arange(16, dtype=np.int32), (8, 16)).copy()
    batch["loss_weights"] = np.ones((8, 16), np.float32)
    return batch | {ADAPTER_IDS: np.broadcast_to((np.arange(8) % 2)[:, None], (8, 16)).astype(np.int32)}


@pytest.mark.parametrize("parts", [1, 2])
def test_an_adapter_learns_from_its_own_rows_alone(parts: int) -> None:
    together = steps([mixed_batch(seed, seed + 50) for seed in range(3)], grad_accum_steps=parts)
    other = steps([mixed_batch(seed, seed + 90) for seed in range(3)], grad_accum_steps=parts)
    for mine, same, theirs, changed in zip(together[0], other[0], together[1], other[1]):
        np.testing.assert_allclose(mine, same, atol=1e-7)  # whatever stands in the other's rows
        assert np.abs(theirs - changed).max() > 1e-3


def test_two_adapters_in_one_run_are_those_of_two_runs() -> None:
    batches = [mixed_batch(seed, seed + 50) for seed in range(3)]
    start, joint = steps([]), steps(batches)
    for number in range(2):
        others = [np.where(batch[ADAPTER_IDS] == number, number, -1).astype(np.int32) for batch in batches]
        alone = steps([batch | {ADAPTER_IDS: ids} for batch, ids in zip(batches, others)])  # its rows, the rest on base
        for first, mine, whole in zip(start[number], alone[number], joint[number]):
            np.testing.assert_allclose(mine, whole, atol=1e-7)
            assert np.abs(mine - first).max() > 1e-3
        for first, untouched in zip(start[1 - number], alone[1 - number]):
            np.testing.assert_array_equal(first, untouched)


def test_the_rows_of_a_source_name_its_adapter(corpus: Path) -> None:
    dataset, config = corpus / "dataset", LoaderConfig(seq_len=64, global_batch_size=8, adapters=PAIRS)
    loader = open_loader(dataset, config)
    assert loader.adapters == NAMES
    plain = open_loader(dataset, LoaderConfig(seq_len=64, global_batch_size=8))
    for step in range(4):
        batch, before = loader.batch(step), plain.batch(step)
        expected = [NAMES.index(row.source) for row in loader.rows_of(step)]
        assert batch.pop(ADAPTER_IDS).tolist() == [[number] * 64 for number in expected]
        assert all((batch[name] == before[name]).all() for name in before)  # nothing else is changed
    for source, rows in open_heldout(dataset, config).items():
        assert all((batch[ADAPTER_IDS][0] == NAMES.index(source)).all() for batch in rows.batches())
    assert adapter_numbers((("web", "a"), (":de", "b")), ["web:en", "web:de", "x:de"]) == {
        "web:en": 0, "web:de": 0, "x:de": 1,
    }  # fmt: skip
    assert adapter_numbers((("web", "a"),), ["web", "books"], others=-1) == {"web": 0, "books": -1}
    for pairs, line in (((("prose", "p"),), "gives source 'code' none"), ((*PAIRS, ("x", "y")), "no rows are of 'x'")):
        with pytest.raises(ValueError, match=line):
            open_loader(dataset, LoaderConfig(seq_len=64, global_batch_size=8, adapters=pairs))


@pytest.mark.slow
@pytest.mark.usefixtures("own_mesh")
def test_a_run_trains_evaluates_replays_and_exports_each_adapter(corpus: Path, tmp_path: Path) -> None:
    save_hf(tiny_model(vocab_size=600), tmp_path / "base")
    config = run_config(
        tmp_path,
        data=run_config(corpus).data,
        model=tiny_config(vocab_size=600),
        init_from=str(tmp_path / "base"),
        lora=LORA,
        loader=LoaderConfig(seq_len=64, global_batch_size=4, adapters=PAIRS),
        optimizer=AdamW(learning_rate=1e-2, weight_decay=0.0),
        checkpoint=CheckpointConfig(every_steps=4, base_weights=True),
        train=train_config(ema_decay=None, compilation_cache=""),
        evaluation=EvaluationConfig(every_steps=12, max_bytes=4000, max_final_bytes=4000, prompts=()),
    )
    assert train(config, corpus / "dataset") == 0
    loaded = load_checkpoint(tmp_path / "run")
    assert loaded.adapters == NAMES and loaded.adapter("code") == 1
    base = load_checkpoint(tmp_path / "base").model
    states = (nnx.to_pure_dict(nnx.state(model)) for model in (base, without_lora(loaded.model)))
    jax.tree.map(np.testing.assert_array_equal, *states)
    ids = np.random.default_rng(0).integers(3, 599, (1, 20)).astype(np.int32)[0]
    logits = []
    for name in NAMES:
        out = tmp_path / name
        command = ["--checkpoint", str(tmp_path / "run"), "--format", "peft", "--adapter", name]
        assert export([*command, "--out", str(out)]) == 0
        assert read_adapter(out)[0]["r"] == 4
        logits.append(our_logits(load_peft(out, base)[0], ids))
    assert np.abs(logits[0] - logits[1]).max() > 1e-3
    assert replay(tmp_path / "run", 7).loss > 0
