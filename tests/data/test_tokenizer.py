"""Every string round-trips, and sentencepiece, transformers and ours agree on every id."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Literal

import pytest
import sentencepiece
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from data.document import Document
from data.tables import write_documents
from data.tokenizer import load_tokenizer
from data.tokenizer_config import TokenizerConfig
from data.tokenizer_json import JsonTokenizer
from data.tokenizer_sample import sample_texts, training_chunks
from data.tokenizer_train import train_tokenizer
from tests.data.token_data import stdlib_documents, tree

TRICKY = (
    """
 lead|trail  |12345|3.14e-10|é e%u0301|日本語|한국어|العربية|हिन्दी|👩‍👩‍👧|▁|a▁b ▁ ▁▁|▅|⁇ ⁅
<s></s><pad><unk><0x41>|<s>|</s> <s>|aaaaaaa
"""[1:-1]
    .replace("%u0301", "\u0301")
    .split("|")
)
TRICKY += ["", " ", "  ", "\n", "\t\t", "\r\n", "\0", "a\0b", "\x1b\x7f", "\ufeffx", "\u2028", "  \n   \n", "-" * 333]
TRICKY += ["\U0010ffff", "\ud7ff\ue000", "=" * 200]


def shard(folder: Path, documents: list[Document], name: str = "documents.parquet") -> Path:
    write_documents(folder / name, documents)
    return folder / name


def fuzz(count: int) -> list[str]:
    rng = random.Random(0)
    parts = [" ", "  ", "\n", "=", "a", "def", "self", "▁", "\t", "(", '"', "'", "#", "-", "1"]
    any_char = [chr(c) for c in range(0x3000)] + [chr(c) for c in range(0x1F600, 0x1F650)]
    return ["".join(rng.choice((rng.choice(parts), rng.choice(any_char))) for _ in range(60)) for _ in range(count)]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    config = TokenizerConfig(
        kind=request.param, vocab_size=700, sample_bytes=60_000, special_tokens=("<|im_start|>",), num_threads=1
    )
    train_tokenizer(config, [shard(folder, list(stdlib_documents()))], folder)
    return folder


def texts() -> list[str]:
    return TRICKY + fuzz(500) + [document.text for document in stdlib_documents(25) if document.source == "code"]


def test_every_string_round_trips(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    for text, ids in zip(texts(), tokenizer.encode_batch(texts())):
        assert tokenizer.decode(ids.tolist()) == text
        assert ids.tolist() == tokenizer.encode(text)
        assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} & set(ids.tolist())


def test_transformers_sentencepiece_and_ours_give_the_same_ids(folder: Path) -> None:
    from transformers import AutoTokenizer

    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    raw = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    as_json = JsonTokenizer(folder)
    for text in texts():
        ids = ours.encode(text)
        assert raw.encode(text) == ids
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids, repr(text[:80])
        assert as_json.encode(text) == ids
        assert theirs.decode(ids, skip_special_tokens=True) == as_json.decode(ids) == text
    assert theirs("x")["input_ids"] == [ours.bos_id, *ours.encode("x")]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (ours.bos_id, ours.eos_id, ours.pad_id)
    assert len(theirs) == as_json.vocab_size == ours.vocab_size == 700
    assert theirs.convert_tokens_to_ids("<|im_start|>") == 4 and ours.piece(4) == "<|im_start|>"
    assert as_json.fingerprint == ours.fingerprint


def test_digits_stand_alone_and_spaces_lead(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    pieces = [tokenizer.piece(token) for token in range(tokenizer.vocab_size)]
    learned = [piece for piece in pieces if not piece.startswith("<")]
    assert not [piece for piece in learned if any(c.isdigit() for c in piece) and len(piece) > 1]
    assert [piece for piece in learned if len(piece) > 2 and piece.startswith(" ")]
    assert not [piece for piece in learned if " " in piece.lstrip(" ")]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_bytes_depend_on_the_documents_not_on_their_shards(kind: Literal["bpe", "unigram"], tmp_path: Path) -> None:
    documents = [document for document in stdlib_documents(20) if document.source == "prose"]
    config = TokenizerConfig(kind=kind, vocab_size=420, sample_bytes=20_000, num_threads=2)
    one = [shard(tmp_path, documents)]
    two = [shard(tmp_path, documents[::-2], "x"), shard(tmp_path, documents[-2::-2], "y")]
    train_tokenizer(config, one, tmp_path / "one")
    train_tokenizer(config, two, tmp_path / "two")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_sample_is_bounded_and_leaves_held_out_text_alone(tmp_path: Path) -> None:
    documents = [
        Document(id=str(n), text=f"{'secret' if n % 4 == 0 else 'open'} {n} " * 20, source="s",
                 meta={"split": "heldout" if n % 4 == 0 else "train"})
        for n in range(2000)
    ]  # fmt: skip
    path = shard(tmp_path, documents)
    sample = sample_texts([path], 50_000, seed=0)
    assert not any("secret" in text for text in sample)
    assert 50_000 <= sum(map(len, sample)) < 50_000 + 200
    assert sample != sample_texts([path], 50_000, seed=1)
    assert len(sample_texts([path], 10**9, seed=0)) == 1500


def test_one_huge_document_cannot_be_the_sample(tmp_path: Path) -> None:
    documents = [Document(id=str(n), text="ab " * (10**6 if n == 7 else 2000), source="s") for n in range(200)]
    sample = sample_texts([shard(tmp_path, documents)], 160_000, seed=0)
    assert max(map(len, sample)) <= 10_000


def test_chunks_are_the_text() -> None:
    for text in [stdlib_documents()[0].text, "x" * 10_000, "\n" * 9000, "a\n" * 5000, ""]:
        chunks = list(training_chunks(text))
        assert "".join(chunks) == text.replace("\0", "\t")
        assert all(0 < len(chunk) <= 4096 for chunk in chunks)


def test_fingerprint_tells_tokenizers_apart(folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.save(tmp_path / "copy")
    assert tree(tmp_path / "copy") == {k: v for k, v in tree(folder).items() if k.startswith("tokenizer")}
    assert load_tokenizer(tmp_path / "copy").fingerprint == tokenizer.fingerprint
    config = TokenizerConfig(vocab_size=700, sample_bytes=30_000, num_threads=1, special_tokens=("<|im_start|>",))
    other = train_tokenizer(config, [folder / "documents.parquet"], tmp_path / "other")
    assert other.fingerprint != tokenizer.fingerprint


def test_any_tokenizer_json_is_read(tmp_path: Path) -> None:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[end], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([document.text for document in stdlib_documents(20)], trainer)
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="no eos_token"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": end, "bos_token": "<start>"}))
    with pytest.raises(ValueError, match=r"names bos_token '<start>', a token that tokenizer.json does not have"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": end}, "bos_token": None}))
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, JsonTokenizer)
    assert tokenizer.bos_id == tokenizer.eos_id == tokenizer.pad_id == 0
    for text in [*TRICKY, end]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert 0 not in tokenizer.encode(text)
    assert [ids.tolist() for ids in tokenizer.encode_batch(TRICKY)] == [tokenizer.encode(text) for text in TRICKY]
    tokenizer.save(tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy").fingerprint == tokenizer.fingerprint


def test_an_added_token_of_a_byte_level_vocabulary_stands_for_its_own_bytes(tmp_path: Path) -> None:
    alphabet = {character: n for n, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Backend(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    added = ["two words", "λόγος", "é"]
    backend.add_tokens(added)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    tokenizer = load_tokenizer(tmp_path)
    text = "a two words λόγος é\n"
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()
    assert tokenizer.token_bytes(tokenizer.eos_id) == b""


def test_bad_input_is_one_clear_line(folder: Path, tmp_path: Path) -> None:
    documents = shard(tmp_path, [Document(id="1", text="too little text", source="s")])
    held_out = shard(tmp_path, [Document(id="1", text="x", source="s", meta={"split": "heldout"})], "h.parquet")
    (tmp_path / "cut").mkdir()
    content = (folder / "tokenizer.model").read_bytes()
    (tmp_path / "cut" / "tokenizer.model").write_bytes(content[: len(content) // 2])
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "tokenizer.json").write_text("{")
    config = TokenizerConfig(vocab_size=5000)
    cases = [
        (lambda: train_tokenizer(config, [documents], tmp_path / "t"), "vocab_size=5000: 15 characters .* lower"),
        (lambda: train_tokenizer(config, [held_out], tmp_path / "t"), "no training text"),
        (lambda: TokenizerConfig(vocab_size=300), "vocab_size=300 leaves no room beside 356"),
        (lambda: TokenizerConfig(kind="word"), "expected 'bpe', 'unigram' or 'byte_bpe'"),  # type: ignore[arg-type]
        (lambda: load_tokenizer(tmp_path / "nowhere"), "no tokenizer here"),
        (lambda: load_tokenizer(tmp_path / "cut"), "not a (readable SentencePiece|whole) model"),
        (lambda: load_tokenizer(tmp_path / "json"), "not a readable tokenizer"),
    ]
    for call, expected in cases:
        with pytest.raises(ValueError, match=expected) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "t").exists()


def test_a_foreign_sentencepiece_model_is_not_taken_for_ours(tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([document.text[:2000] for document in stdlib_documents(20)]),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=400,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(ValueError, match="rewrites spaces"):
        load_tokenizer(tmp_path)
