"""From chats to a tuned run to files that others load: merges carry a certificate, and a bad one is not written."""

import dataclasses
import json
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from data.build import build_dataset
from data.chat_stage import Chats
from data.heldout import HeldOut
from data.loader import LoaderConfig
from data.sources.chat_files import ChatFiles
from models.checkpoints.load import CheckpointTokenizer, load_checkpoint
from models.checkpoints.save import save_hf
from models.lora import LoRA, merge_lora
from models.parity import our_logits
from models.quantize import NF4
from models.sharding import MeshConfig, make_mesh
from tests.data.token_data import stdlib_documents
from tests.models.checkpoint_cases import byte_tokenizer, tiny_config, tiny_model
from tests.train.tiny import losses, run_config, train_config
from train.evaluation import EvaluationConfig
from train.export import open_tuned, run
from train.loop import train
from train.metrics import read_metrics
from train.optimizer import AdamW

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


pytestmark = pytest.mark.slow  # a whole run, and five models written and read again


@pytest.fixture(scope="module")
def tuned_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A QLoRA run on chats, from a tiny checkpoint."""
    folder = tmp_path_factory.mktemp("tuned")
    tokenizer = dataclasses.replace(byte_tokenizer(), chat_template=TEMPLATE)
    save_hf(tiny_model(), folder / "base", tokenizer=tokenizer)
    texts = [d.text for d in stdlib_documents(20) if d.source == "prose" and "<" not in d.text and len(d.text) > 80]
    with (folder / "chats.jsonl").open("w") as file:
        for text in texts:
            file.write(json.dumps({"prompt": text[:20], "completion": text[20:120]}) + "\n")
    config = run_config(
        folder,
        model=tiny_config(),
        init_from=str(folder / "base"),
        lora=LoRA(targets="all-linear", rank=4, dropout=0.1),
        quantize=NF4(block=32),
        optimizer=AdamW(learning_rate=2e-2, weight_decay=0.0),
        loader=LoaderConfig(seq_len=256, global_batch_size=4),
        train=train_config(ema_decay=None, compilation_cache=""),
        evaluation=EvaluationConfig(every_steps=6, max_bytes=4000, max_final_bytes=4000, prompts=()),
    )
    own = CheckpointTokenizer(location=str(folder / "base"))
    data = dataclasses.replace(
        config.data,
        sources=(ChatFiles(name="chats", paths=(str(folder / "chats.jsonl"),)),),
        stages=(HeldOut(fraction=0.2), Chats(tokenizer=own, max_tokens=257)),
        tokenizer=own,
    )
    config = dataclasses.replace(config, data=data)
    handler = signal.getsignal(signal.SIGTERM)
    with jax.set_mesh(make_mesh(MeshConfig())):
        assert train(config, build_dataset(data)) == 0
    signal.signal(signal.SIGTERM, handler)
    return folder / "run"


def test_the_loss_on_answers_falls(tuned_run: Path) -> None:
    values = list(losses(tuned_run).values())
    assert values[-1] < values[0]
    heldout = [line["heldout/loss/chats"] for line in read_metrics(tuned_run) if "heldout/loss/chats" in line]
    assert heldout[-1] < heldout[0] < values[0]  # after 6 and 12 steps, of the answers alone


def test_a_merge_is_certified_against_both_bases(tuned_run: Path, tmp_path: Path) -> None:
    assert run(["--checkpoint", str(tuned_run), "--format", "hf", "--out", str(tmp_path / "hf")]) == 0
    record = json.loads((tmp_path / "hf" / "merge_certificate.json").read_text())
    assert record["passed"] and record["quantization"]["type"] == "NF4"
    trained, original = record["merges"]["trained"], record["merges"]["original"]
    assert trained["mean_kl"] < 1e-6 and trained["argmax_agreement"] == 1.0 and trained["tokens"] > 500
    assert abs(trained["loss"] - trained["trained_loss"]) < 1e-5
    assert original["mean_kl"] > 1e-4  # 4 bits are not 16
    ids = np.arange(3, 67)
    ours = our_logits(merge_lora(open_tuned(tuned_run, None).model), ids)
    np.testing.assert_allclose(our_logits(load_checkpoint(tmp_path / "hf").model, ids), ours, rtol=1e-5, atol=1e-5)


def test_a_bad_merge_is_not_written_unless_told(tuned_run: Path, tmp_path: Path) -> None:
    asked = ["--checkpoint", str(tuned_run), "--format", "hf", "--into", "original", "--max-kl", "1e-7"]
    with pytest.raises(ValueError, match=r"not written: mean KL .* nats a token, the limit is 1e-07"):
        run([*asked, "--out", str(tmp_path / "hf")])
    assert not list(tmp_path.iterdir())
    assert run([*asked, "--out", str(tmp_path / "hf"), "--force"]) == 0
    assert not json.loads((tmp_path / "hf" / "merge_certificate.json").read_text())["passed"]
    with pytest.raises(ValueError, match="is already there"):
        run([*asked, "--out", str(tmp_path / "hf")])


def test_an_adapter_goes_out_and_is_merged_from_its_folder(tuned_run: Path, tmp_path: Path) -> None:
    assert run(["--checkpoint", str(tuned_run), "--format", "peft", "--out", str(tmp_path / "adapter")]) == 0
    merged = ["--checkpoint", str(tmp_path / "adapter"), "--format", "hf", "--out", str(tmp_path / "hf")]
    assert run(merged) == 0
    record = json.loads((tmp_path / "hf" / "merge_certificate.json").read_text())
    assert record["passed"] and record["quantization"]["type"] == "NF4"
    ids = np.arange(3, 67)
    theirs = our_logits(load_checkpoint(tmp_path / "hf").model, ids)
    ours = our_logits(open_tuned(tuned_run, None).model, ids)
    # a merge adds in another order, and float32 rounds sums at the size of their largest terms
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5 * np.abs(ours).max())


def test_a_gguf_file_is_certified_as_it_is_read_again(tuned_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    assert run(["--checkpoint", str(tuned_run), "--format", "gguf", "--out", str(tmp_path / "gguf")]) == 0
    record = json.loads((tmp_path / "gguf" / "merge_certificate.json").read_text())
    assert record["passed"] and 0 < record["merges"]["trained"]["mean_kl"] < 1e-4  # float16 rounds
