"""A run whose adapters began by changing their base, handed to PEFT by the command."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from models.checkpoints.load import load_checkpoint
from models.checkpoints.peft import load_peft
from models.checkpoints.save import save_hf
from models.lora import LoRA
from models.parity import our_logits
from models.quantize import NF4
from tests.models.checkpoint_cases import tiny_config, tiny_model
from tests.train.tiny import run_config, train_config
from train.evaluation import EvaluationConfig
from train.export import run as export
from train.loop import train
from train.optimizer import AdamW

pytestmark = pytest.mark.slow  # whole runs


@pytest.mark.usefixtures("own_mesh")
@pytest.mark.parametrize("init", ["pissa", "loftq"])
def test_a_run_goes_to_peft_on_the_original_base(init: str, corpus: Path, tmp_path: Path, capsys) -> None:
    save_hf(tiny_model(vocab_size=600), tmp_path / "base")
    config = run_config(
        tmp_path,
        data=run_config(corpus).data,
        model=tiny_config(vocab_size=600),
        init_from=str(tmp_path / "base"),
        lora=LoRA(targets=("q", "down"), rank=4, dropout=0.0, init=init),  # type: ignore[arg-type]
        quantize=NF4(block=16) if init == "loftq" else None,
        optimizer=AdamW(learning_rate=1e-2, weight_decay=0.0),
        train=dataclasses.replace(train_config(ema_decay=None, compilation_cache=""), num_steps=6),
        evaluation=EvaluationConfig(every_steps=12, max_bytes=4000, max_final_bytes=4000, prompts=()),
    )
    assert train(config, corpus / "dataset") == 0
    command = ["--checkpoint", str(tmp_path / "run"), "--format", "peft", "--out", str(tmp_path / "adapter")]
    if init == "loftq":
        with pytest.raises(ValueError, match="not written: mean KL"):  # 4 bits in blocks of 16 of a tiny random model
            export([*command, "--max-kl", "1e-9"])
        assert not (tmp_path / "adapter").exists()
    assert export([*command, *(["--force"] if init == "loftq" else [])]) == 0
    assert "adapter on the original base: tokens" in capsys.readouterr().out
    ids = np.random.default_rng(0).integers(3, 599, 20).astype(np.int32)
    trained = our_logits(load_checkpoint(tmp_path / "run").model, ids)
    base = load_checkpoint(tmp_path / "base").model
    ours = our_logits(load_peft(tmp_path / "adapter", base)[0], ids)
    assert np.abs(trained - our_logits(base, ids)).max() > 1e-3
    if init == "pissa":
        np.testing.assert_allclose(ours, trained, atol=1e-5 * np.abs(trained).max())
