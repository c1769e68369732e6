"""Adapter folders to files that others load, without a run: what is compared, and what is stored in 4 bits."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from data.loader import LoaderConfig
from models.checkpoints.load import load_checkpoint
from models.checkpoints.peft_save import save_peft
from models.lora import LoRA, add_lora, merge_lora
from models.parity import our_logits
from models.quantize import NF4, quantize_model
from models.transformer import CausalLM
from tests.data.token_data import build, stdlib_documents
from tests.models.checkpoint_cases import byte_tokenizer, save_tiny
from train.config import to_json
from train.export import Tuned, compared_rows, run

IDS = np.arange(3, 67)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CausalLM]:
    """(the folder of an adapter that names its base, the adapted model)."""
    folder = tmp_path_factory.mktemp("adapter")
    base = save_tiny(folder / "base", embed_dim=64)
    lora = LoRA(targets=("q", "down"), rank=4)
    adapted = add_lora(base, lora, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for module in (adapted.layers.attention.q, adapted.layers.mlp.down):
        module.lora.b = module.lora.b.replace(0.05 * rng.standard_normal(module.lora.b.shape).astype(np.float32))
    save_peft(adapted, lora, folder / "adapter", base=str(folder / "base"))
    return folder / "adapter", adapted


def test_the_certificate_says_what_was_compared(adapter: tuple[Path, CausalLM], tmp_path: Path) -> None:
    folder, _ = adapter
    assert run(["--checkpoint", str(folder), "--format", "hf", "--out", str(tmp_path / "hf")]) == 0
    record = json.loads((tmp_path / "hf" / "merge_certificate.json").read_text())
    assert record["passed"] and record["compared_on"].startswith("a built-in passage")


def test_a_run_without_held_out_documents_is_compared_on_the_passage(
    adapter: tuple[Path, CausalLM], tmp_path: Path
) -> None:
    dataset = build(tmp_path, [replace(d, meta=d.meta | {"split": "train"}) for d in stdlib_documents(4)])
    settings = {"data": {"path": str(dataset)}, "loader": to_json(LoaderConfig(seq_len=64, global_batch_size=2))}
    tuned = Tuned(model=adapter[1], lora=None, base="", tokenizer=byte_tokenizer(), run=settings, folder=tmp_path)
    said, batches = compared_rows(tuned, 512)
    assert said.startswith("a built-in passage") and len(batches) == 1 and batches[0]["loss_weights"].sum() > 60


def test_a_merge_can_be_stored_in_4_bits(adapter: tuple[Path, CausalLM], tmp_path: Path) -> None:
    folder, adapted = adapter
    asked = ["--checkpoint", str(folder), "--out", str(tmp_path / "nf4"), "--dtype", "nf4", "--format"]
    with pytest.raises(ValueError, match="--dtype nf4 is of --format hf; --format gguf has its own numbers"):
        run([*asked, "gguf"])
    with pytest.raises(ValueError, match="--into original is of a merge: --format peft writes the adapter alone"):
        run([*asked[:4], "--format", "peft", "--into", "original"])
    with pytest.raises(ValueError, match=r"no checkpoint at .*nowhere: expected a run folder, or a PEFT"):
        run(["--checkpoint", str(tmp_path / "nowhere"), *asked[2:4], "--format", "hf"])
    with pytest.raises(ValueError, match="not written: mean KL"):  # 4 bits are not 32, and the certificate says so
        run([*asked, "hf", "--max-kl", "1e-9"])
    lax = [*asked, "hf", "--max-kl", "9"]
    with pytest.raises(
        ValueError, match=r"not written: held-out loss .*, the limit is \+-9; take .* \(--max-kl, --max-loss\)"
    ):
        run([*lax, "--max-loss", "-9"])
    assert run([*lax, "--max-loss", "9"]) == 0
    loaded = load_checkpoint(tmp_path / "nf4")
    assert loaded.tokenizer is not None and loaded.tokenizer.eos_id == 2
    expected = quantize_model(merge_lora(adapted), NF4())
    np.testing.assert_allclose(our_logits(loaded.model, IDS), our_logits(expected, IDS), rtol=1e-5, atol=1e-5)
    record = json.loads((tmp_path / "nf4" / "merge_certificate.json").read_text())
    assert record["passed"] and record["max_loss_increase"] == 9
    assert record["stored_as"] == "nf4" and record["merges"]["trained"]["mean_kl"] > 1e-6
