"""Several adapters over one base: a row with one of them is a row of the model that has that one alone."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import generate, score
from models.checkpoints.load import LoadedCheckpoint, load_checkpoint
from models.checkpoints.peft import load_peft
from models.checkpoints.peft_save import save_peft
from models.decode import DecodeConfig, Decoder
from models.generation import TextGenerator
from models.lora import LoRA, add_lora
from models.quantize import NF4, quantize_model
from models.rows import RowContext
from models.scoring import Scorer
from models.specs import CheckpointScorer
from models.transformer import CausalLM
from tests.models.checkpoint_cases import save_tiny

NAMES = ("style", "chats", "base")
TEXTS = ["hello there", "some other text", "a third one, longer than the others", "x"]


def saved_adapter(base: CausalLM, lora: LoRA, folder: Path, seed: int) -> None:
    """An adapter that does something, as a PEFT folder."""
    adapted = add_lora(base, lora, rngs=nnx.Rngs(seed))
    rng = np.random.default_rng(seed)
    graph, state = nnx.split(adapted)
    moved = [
        (path, leaf.replace(leaf.get_value() + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32)))
        if any("lora" in str(part) for part in path)
        else (path, leaf)
        for path, leaf in nnx.to_flat_state(state)
    ]
    save_peft(nnx.merge(graph, nnx.from_flat_state(moved)), lora, folder)


KINDS: dict[str, tuple[LoRA, LoRA]] = {
    "other ranks and places": (
        LoRA(targets=("q", "down", "embedding"), rank=4, alpha=8.0),
        LoRA(targets=("v", "q", "lm_head"), rank=2, rslora=True),
    ),
    "dora": (LoRA(targets=("q", "up"), rank=3, dora=True), LoRA(targets=("q", "up"), rank=4, dora=True)),
}


@pytest.fixture(scope="module", params=["other ranks and places", pytest.param("dora", marks=pytest.mark.slow)])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LoadedCheckpoint]:
    """(a folder with base, style and chats; the base with both adapters)."""
    folder = tmp_path_factory.mktemp("adapters")
    base = save_tiny(folder / "base")
    for seed, (name, lora) in enumerate(zip(NAMES, KINDS[request.param])):
        saved_adapter(base, dataclasses.replace(lora, dropout=0.0), folder / name, seed)
    return folder, load_checkpoint(folder / "base", adapters={name: folder / name for name in NAMES[:2]})


def alone(folder: Path, name: str) -> CausalLM:
    """The model that has one adapter, or none."""
    base = load_checkpoint(folder / "base").model
    return base if name == "base" else load_peft(folder / name, base)[0]


def test_each_row_is_that_of_its_adapter_alone(shared: tuple[Path, LoadedCheckpoint]) -> None:
    folder, loaded = shared
    ids = jnp.asarray(np.random.default_rng(0).integers(3, 259, (3, 24)), jnp.int32)
    rest = jnp.ones_like(ids), jnp.tile(jnp.arange(24, dtype=jnp.int32), (3, 1))
    rows = RowContext(adapter_ids_B=jnp.asarray([loaded.adapter(name) for name in NAMES], jnp.int32))
    mixed = np.asarray(loaded.model.logits(loaded.model(ids, *rest, rows=rows)))
    for row, name in enumerate(NAMES):
        model = alone(folder, name)
        expected = np.asarray(model.logits(model(ids, *rest)))[row]
        np.testing.assert_allclose(mixed[row], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert np.abs(mixed[0] - mixed[2]).max() > 0.1 < np.abs(mixed[1] - mixed[2]).max()


@pytest.mark.slow
def test_one_process_scores_with_the_base_and_answers_with_an_adapter(shared: tuple[Path, LoadedCheckpoint]) -> None:
    folder, loaded = shared
    scorer = Scorer(loaded.model, loaded.tokenizer)
    names = [NAMES[i % 3] for i in range(len(TEXTS))]
    nats, _ = scorer.score(TEXTS, [loaded.adapter(name) for name in names])
    decode = DecodeConfig(max_new_tokens=12, batch_size=4)
    generator = TextGenerator(Decoder(loaded.model), loaded.tokenizer, decode)  # type: ignore[arg-type]
    texts = generator.generate(TEXTS, [loaded.adapter(name) for name in names])
    found = set()
    for name in NAMES:
        model, mine = alone(folder, name), [i for i, other in enumerate(names) if other == name]
        expected, _ = Scorer(model, loaded.tokenizer).score(TEXTS)
        np.testing.assert_allclose([nats[i] for i in mine], [expected[i] for i in mine], rtol=1e-4)
        answers = TextGenerator(Decoder(model), loaded.tokenizer, decode).generate(TEXTS)  # type: ignore[arg-type]
        assert [texts[i] for i in mine] == [answers[i] for i in mine]
        bound = TextGenerator(generator.decoder, loaded.tokenizer, decode, adapter=loaded.adapter(name))  # type: ignore[arg-type]
        assert bound.generate(TEXTS) == answers
        if name != "base":
            spec = CheckpointScorer(checkpoint=str(folder / "base"), adapter=str(folder / name))
            np.testing.assert_allclose(spec.build().score(TEXTS)[0], expected, rtol=1e-4)
            assert spec.inputs_key() != dataclasses.replace(spec, adapter=None).inputs_key()
        found.add(tuple(answers))
    assert len(found) == 3


@pytest.mark.slow
def test_every_document_of_a_file_names_its_adapter(
    shared: tuple[Path, LoadedCheckpoint], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, loaded = shared
    names = [NAMES[i % 3] for i in range(len(TEXTS))]
    lines: list[dict] = [{"text": text, "adapter": name} for text, name in zip(TEXTS, names)]
    lines.append({"id": "rest", "text": TEXTS[0]})  # that of --use
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    both = [part for name in NAMES[:2] for part in ("--adapter", f"{name}={folder / name}")]
    command = ["--checkpoint", str(folder / "base"), *both, "--input", str(tmp_path / "texts.jsonl")]
    assert score.run([*command, "--use", "chats"]) == 0
    found = [json.loads(line)["nats"] for line in capsys.readouterr().out.splitlines()[:-1]]
    for place, (text, name) in enumerate(zip([*TEXTS, TEXTS[0]], [*names, "chats"])):
        (expected,), _ = Scorer(alone(folder, name), loaded.tokenizer).score([text])
        assert found[place] == pytest.approx(expected, rel=1e-4)
    for wrong, line in (
        (5, "line 1: adapter=5; expected a name, or 'base'"),
        ("poems", "no adapter is called 'poems'"),
    ):
        (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "x", "adapter": wrong}))
        with pytest.raises(ValueError, match=line):
            score.run(command)


@pytest.mark.slow
def test_commands_take_adapters_by_name(
    shared: tuple[Path, LoadedCheckpoint], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, loaded = shared
    both = [part for name in NAMES[:2] for part in ("--adapter", f"{name}={folder / name}")]
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    for name in NAMES:
        command = ["--checkpoint", str(folder / "base"), *both, "--use", name]
        assert score.run([*command, "--input", str(tmp_path / "texts.txt")]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        expected, _ = Scorer(alone(folder, name), loaded.tokenizer).score(TEXTS)
        np.testing.assert_allclose([line["nats"] for line in lines[:-1]], expected, rtol=1e-4)
        assert generate.run([*command, "--prompt", "hello", "--max-new-tokens", "8"]) == 0
        told = capsys.readouterr().out
        config = DecodeConfig(max_new_tokens=8)
        (text,) = TextGenerator(Decoder(alone(folder, name)), loaded.tokenizer, config).generate(["hello"])  # type: ignore[arg-type]
        assert told == f"hello{text}\n"


def test_what_cannot_share_a_base_is_refused_in_one_line(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", vocab_size=264)
    kinds: dict[str, Any] = {
        "plain": LoRA(targets=("q",), rank=2),
        "dora": LoRA(targets=("q",), rank=2, dora=True),
        "whole": LoRA(targets=("q",), rank=2, also_train=("final_norm",)),
    }
    for name, lora in kinds.items():
        saved_adapter(base, lora, tmp_path / name, 0)
    small = quantize_model(add_lora(base, kinds["plain"], rngs=nnx.Rngs(0)), NF4(block=32))
    save_peft(small, kinds["plain"], tmp_path / "nf4")
    for names, match in (
        (("plain", "dora"), r"adapter 'dora' scales the columns of layers.attention.q \(DoRA\) and 'plain' does not"),
        (("plain", "whole"), r"adapter 'whole' changes the base itself \(final_norm.* trained whole\)"),
        (("nf4", "plain"), r"adapter 'nf4' was trained on a base in NF4\(.*'plain' on one in float: they cannot share"),
    ):
        with pytest.raises(ValueError, match=match):
            load_checkpoint(tmp_path / "base", adapters={name: tmp_path / name for name in names})
    loaded = load_checkpoint(tmp_path / "base", adapters={"nf4": tmp_path / "nf4"})
    with pytest.raises(ValueError, match="no adapter is called 'chats': choose of nf4, base"):
        loaded.adapter("chats")
    for wrong in (1, -2):
        with pytest.raises(ValueError, match=f"adapter {wrong} was chosen, the model has 1"):
            Scorer(loaded.model).score_ids([[3, 4]], [wrong])
        with pytest.raises(ValueError, match=f"adapter {wrong} was chosen, the model has 1"):
            TextGenerator(Decoder(loaded.model), loaded.tokenizer, DecodeConfig(), adapter=wrong).generate(["a"])  # type: ignore[arg-type]
    for given in ("plain", "=x", "plain=", "base=x"):
        with pytest.raises(ValueError, match=f"--adapter {given}: "):
            generate.run(["--checkpoint", str(tmp_path / "base"), "--prompt", "a", "--adapter", given])
