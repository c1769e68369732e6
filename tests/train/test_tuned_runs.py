"""Whole tuned runs: preferences through the loop, and adapters over a base whose vocabulary grew."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data.build import DataConfig, build_dataset
from data.chat_stage import Chats
from data.engine import LocalPool
from data.heldout import HeldOut
from data.heldout_loader import open_heldout
from data.loader import LoaderConfig
from data.sources.chat_files import ChatFiles
from data.sources.jsonl import JsonlSource
from data.tokenizer_extend import extend_bpe
from models.checkpoints.load import CheckpointTokenizer, load_checkpoint
from models.checkpoints.save import save_hf
from models.checkpoints.tokenizer import load_tokenizer_folder
from models.extend import extend_model, parents_of
from models.lora import LoRA, merge_lora, without_lora
from models.parity import our_logits
from models.transformer import CausalLM
from tests.models.checkpoint_cases import byte_tokenizer, save_tiny, tiny_config, tiny_model
from tests.train.tiny import run_config, train_config
from train.config import Config
from train.evaluation import EvaluationConfig
from train.loop import train
from train.metrics import read_metrics
from train.optimizer import AdamW
from train.preference import Preference, pair_log_probs, pairs_of

pytestmark = pytest.mark.slow  # two whole runs

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def tuning_run(folder: Path, data: DataConfig, **changes: Any) -> Config:
    """A dozen steps of adapters on the checkpoint in `folder`/base."""
    sections = {
        "data": data,
        "model": tiny_config(),
        "init_from": str(folder / "base"),
        "lora": LoRA(targets="all-linear", rank=4, dropout=0.0),
        "optimizer": AdamW(learning_rate=5e-3, weight_decay=0.0),
        "loader": LoaderConfig(seq_len=192, global_batch_size=4),
        "train": train_config(ema_decay=None, compilation_cache=""),
        "evaluation": EvaluationConfig(every_steps=12, max_bytes=20_000, max_final_bytes=20_000, prompts=()),
    }
    return run_config(folder, **(sections | changes))


def margins(policy: CausalLM, reference: CausalLM, batch: Mapping[str, Any]) -> np.ndarray:
    """Of every pair of a batch, from two models that know nothing of each other."""
    sides = []
    for model in (policy, reference):
        graph, state = nnx.split(model)
        of = jax.jit(lambda state, graph=graph: pair_log_probs(nnx.merge(graph, state), batch, None, None))
        chosen, rejected = of(state)
        sides.append(np.asarray(chosen - rejected))
    return (sides[0] - sides[1])[np.asarray(pairs_of(batch))]


@pytest.mark.usefixtures("own_mesh")
def test_preferences_train_through_the_loop_against_the_base_without_its_adapter(tmp_path: Path) -> None:
    save_hf(tiny_model(), tmp_path / "base", tokenizer=dataclasses.replace(byte_tokenizer(), chat_template=TEMPLATE))
    lines = [
        {"prompt": f"Add {a} and {b}", "chosen": f"It is {a + b}.", "rejected": f"I do not know what {a} is."}
        for a in range(12)
        for b in range(8)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    own = CheckpointTokenizer(location=str(tmp_path / "base"))
    data = DataConfig(
        path=str(tmp_path / "dataset"),
        sources=(ChatFiles(name="pairs", paths=(str(tmp_path / "pairs.jsonl"),)),),
        stages=(HeldOut(fraction=0.2), Chats(tokenizer=own, max_tokens=193)),
        tokenizer=own,
        engine=LocalPool(workers=1),
    )
    config = tuning_run(tmp_path, data, objective=Preference(beta=0.3))
    assert train(config, build_dataset(data)) == 0

    steps = [line for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert abs(steps[0]["margin"]) < 1e-5 and steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    grown = [line["margin"] for line in steps]
    assert grown[-1] > grown[len(grown) // 2] > 0.5 and steps[-1]["accuracy"] > 0.9
    assert steps[-1]["loss"] < 0.5 * steps[0]["loss"]

    base, tuned = load_checkpoint(tmp_path / "base").model, load_checkpoint(tmp_path / "run").model
    jax.tree.map(np.testing.assert_array_equal, *(nnx.to_pure_dict(nnx.state(m)) for m in (base, without_lora(tuned))))
    rows = open_heldout(tmp_path / "dataset", config.loader)["pairs"]
    policy = merge_lora(tuned)
    heldout = np.concatenate(
        [margins(policy, base, {k: jnp.asarray(v) for k, v in batch.items()}) for batch in rows.batches()]
    )
    told = [line["heldout/margin/pairs"] for line in read_metrics(tmp_path / "run") if "heldout/margin/pairs" in line]
    assert len(heldout) == rows.num_documents and told[-1] == pytest.approx(heldout.mean(), rel=1e-4)


@dataclass(frozen=True, kw_only=True)
class OwnTokenizer:
    """The tokenizer of a folder."""

    folder: str

    def write(self, folder: Path) -> None:
        load_tokenizer_folder(Path(self.folder)).save(folder)


@pytest.mark.usefixtures("own_mesh")
def test_a_run_over_a_base_whose_vocabulary_grew_is_loaded_as_it_was_trained(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", vocab_size=byte_tokenizer().vocab_size)
    texts = [f"Der Bär {n} hört größere Töne, süß und schön." for n in range(200)]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    byte_tokenizer().save(tmp_path)
    spec, count = extend_bpe(json.loads((tmp_path / "tokenizer.json").read_text()), texts, ["plain"], 21)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    vocab_size = base.config.vocab_size + count
    data = DataConfig(
        path=str(tmp_path / "dataset"),
        sources=(JsonlSource(name="texts", paths=(str(tmp_path / "texts.jsonl"),)),),
        stages=(HeldOut(fraction=0.2),),
        tokenizer=OwnTokenizer(folder=str(tmp_path)),
        engine=LocalPool(workers=1),
    )
    config = tuning_run(tmp_path, data, model=tiny_config(vocab_size=vocab_size))
    assert train(config, build_dataset(data)) == 0

    tuned = load_checkpoint(tmp_path / "run")
    new = load_tokenizer_folder(tmp_path)
    grown = extend_model(base, parents_of(byte_tokenizer(), new, base.config.vocab_size))
    ids = np.asarray(new.encode(texts[0]))
    assert ids.max() >= base.config.vocab_size
    np.testing.assert_array_equal(our_logits(without_lora(tuned.model), ids), our_logits(grown, ids))
    assert np.abs(our_logits(tuned.model, ids) - our_logits(grown, ids)).max() > 0.1
