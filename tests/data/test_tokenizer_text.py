"""A run's own tokenizer gives documents the ids that they had in training, and finds special tokens in chats only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.tables import write_documents
from data.tokenizer import load_tokenizer
from data.tokenizer_config import TokenizerConfig
from data.tokenizer_train import train_tokenizer
from models.checkpoints.tokenizer import load_tokenizer_folder
from tests.data.test_tokenizer import TRICKY
from tests.data.token_data import stdlib_documents, tree

TEXTS = [*TRICKY, "<|im_start|>user", "a <s>b</s>", "</s>"]


@pytest.fixture(scope="module", params=["bpe", "unigram", "byte_bpe"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    write_documents(folder / "documents.parquet", stdlib_documents(20))
    config = TokenizerConfig(
        kind=request.param, vocab_size=600, sample_bytes=50_000, num_threads=1, special_tokens=("<|im_start|>",)
    )
    train_tokenizer(config, [folder / "documents.parquet"], folder / "tokenizer")
    return folder / "tokenizer"


def test_documents_have_the_ids_of_training(folder: Path) -> None:
    trained, run = load_tokenizer(folder), load_tokenizer_folder(folder, prefix_bos=True)
    expected = [trained.encode(text) for text in TEXTS]
    assert run.encode_batch(TEXTS) == expected
    assert [run.encode_document(text) for text in TEXTS] == [[trained.bos_id, *ids] for ids in expected]


def test_a_rendered_chat_has_its_special_tokens(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}<|im_start|>{{ m.content }}</s>{% endfor %}")
    run = load_tokenizer_folder(folder)
    (folder / "chat_template.jinja").unlink()
    chat = run.render_chat([{"role": "user", "content": "hi"}])
    start = run.token_id("<|im_start|>")
    assert run.encode(chat) == [start, *run.encode("hi"), run.eos_id]
    assert start not in run.encode_document(chat)


def test_saving_keeps_what_the_folder_says(folder: Path, tmp_path: Path) -> None:
    load_tokenizer_folder(folder).save(tmp_path / "copy")
    for name in ("split_special_tokens", "additional_special_tokens", "bos_token", "eos_token", "pad_token"):
        old, new = (json.loads((path / "tokenizer_config.json").read_text()) for path in (folder, tmp_path / "copy"))
        assert new[name] == old[name]
    assert tree(tmp_path / "copy").get("tokenizer.model") == tree(folder).get("tokenizer.model")
    assert load_tokenizer_folder(tmp_path / "copy").encode_batch(TEXTS) == load_tokenizer_folder(folder).encode_batch(
        TEXTS
    )
    assert load_tokenizer(tmp_path / "copy").fingerprint == load_tokenizer(folder).fingerprint


def test_another_librarys_tokenizer_model_is_left(folder: Path, tmp_path: Path) -> None:
    load_tokenizer_folder(folder).save(tmp_path)
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")  # tiktoken's
    assert load_tokenizer_folder(tmp_path).sentencepiece is None


@pytest.mark.parametrize("name", ["bos_token", "eos_token", "pad_token"])
def test_a_special_token_that_is_not_there_is_one_line(folder: Path, tmp_path: Path, name: str) -> None:
    load_tokenizer_folder(folder).save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: "<none>"}))
    with pytest.raises(ValueError, match=f"names {name} '<none>', a token that tokenizer.json does not have") as caught:
        load_tokenizer_folder(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("token", ["<s>", "</s>", "<pad>", "<unk>", "<0x0A>"])
def test_a_control_token_with_a_taken_name_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match=f"special_tokens .*: {token} is already a piece; take another"):
        TokenizerConfig(special_tokens=("<a>", token))
