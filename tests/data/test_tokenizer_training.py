"""Strategies of training: languages balanced, scripts covered, digits and white space by rule, byte-level BPE."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.document import Document
from data.languages import script_of
from data.tables import read_documents, write_documents
from data.tokenizer import load_tokenizer
from data.tokenizer_config import TokenizerConfig
from data.tokenizer_sample import balanced_texts, covered_texts, language_budgets
from data.tokenizer_train import train_tokenizer
from tests.data.test_tokenizer import TRICKY, fuzz
from tests.data.token_data import stdlib_documents, tree

BYTE_BPE = TokenizerConfig(
    kind="byte_bpe", vocab_size=700, sample_bytes=60_000, special_tokens=("<|im_start|>",), reserved_tokens=2
)


def shard(folder: Path, documents: list[Document], name: str = "documents.parquet") -> Path:
    write_documents(folder / name, documents)
    return folder / name


def sentences(language: str, text: str, count: int) -> list[Document]:
    return [
        Document(id=f"{language}/{n}", text=f"{text} {n}. ", source="s", meta={"language": language})
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    documents = [
        *sentences("en", "the quick brown fox jumps over the lazy dog", 3000),
        *sentences("el", "η γρήγορη καφέ αλεπού", 300),
        *sentences("ka", "სწრაფი ყავისფერი მელა", 30),
    ]
    return shard(tmp_path_factory.mktemp("three"), documents)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.7, 1.0])
def test_shares_of_the_sample_follow_the_temperature(three: Path, alpha: float) -> None:
    texts = balanced_texts([three], 40_000, seed=0, alpha=alpha)
    sizes = {"en": 0, "el": 0, "ka": 0}
    for text in texts:
        sizes[{"t": "en", "η": "el", "ს": "ka"}[text[0]]] += len(text.encode())
    whole = dict.fromkeys(sizes, 0)
    for document in read_documents(three):
        whole[document.meta["language"]] += len(document.text.encode())
    expected = language_budgets(whole, 40_000, alpha)
    assert sum(sizes.values()) == pytest.approx(40_000, rel=0.02)
    for language, size in sizes.items():
        assert size == pytest.approx(expected[language], rel=0.08, abs=120)
    if alpha == 0:
        assert max(sizes.values()) < 1.02 * min(sizes.values())


def test_a_balanced_sample_does_not_depend_on_shards_and_detects_what_nobody_declared(tmp_path: Path) -> None:
    text = {"en": "This is an ordinary English sentence about the weather", "ru": "Это обычное русское предложение"}
    documents = [
        Document(id=f"{language}{n}", text=f"{text[language]} {n}", source="s")
        for language, count in (("en", 40), ("ru", 4))
        for n in range(count)
    ]
    one = [shard(tmp_path, documents)]
    two = [shard(tmp_path, documents[::-2], "x"), shard(tmp_path, documents[-2::-2], "y")]
    found = balanced_texts(one, 2000, seed=0, alpha=0.0)
    assert found == balanced_texts(two, 2000, seed=0, alpha=0.0)
    russian = sum(len(text.encode()) for text in found if "русское" in text)
    assert russian == pytest.approx(1000, rel=0.1)  # 4 sentences, repeated


def test_coverage_is_counted_script_by_script() -> None:
    texts = ["a" * 1000 + "z", "漢" * 90 + "字" * 9 + "龘", "日本 12"]
    covered = covered_texts(texts, 1.0, {"CJK": 0.9})
    assert covered[0] == texts[0] and covered[1] == "漢" * 90 + "字" * 9 + "\t"
    assert script_of("漢") == "CJK" and script_of("é") == "LATIN" and script_of("1") == "COMMON"


def test_a_rare_script_keeps_its_characters_where_a_share_of_all_would_drop_them(tmp_path: Path) -> None:
    documents = [*stdlib_documents(10), Document(id="2", text="ქ ღ ყ შ", source="s")]
    config = TokenizerConfig(vocab_size=700, sample_bytes=10**6, num_threads=1, character_coverage=0.99)
    path = [shard(tmp_path, documents)]
    lost = train_tokenizer(config, path, tmp_path / "lost")
    kept = train_tokenizer(replace(config, script_coverage=(("GEORGIAN", 1.0),)), path, tmp_path / "kept")
    assert len(lost.encode("ქ")) == 3 and len(kept.encode("ქ")) == 1
    assert lost.decode(lost.encode("ქღ")) == kept.decode(kept.encode("ქღ")) == "ქღ"


@pytest.fixture(scope="module")
def byte_bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("byte_bpe")
    train_tokenizer(BYTE_BPE, [shard(folder, list(stdlib_documents()))], folder)
    return folder


def test_byte_bpe_round_trips_and_agrees_with_transformers(byte_bpe: Path) -> None:
    from transformers import AutoTokenizer

    ours, theirs = load_tokenizer(byte_bpe), AutoTokenizer.from_pretrained(byte_bpe)
    texts = TRICKY + fuzz(300) + [document.text for document in stdlib_documents(10)]
    for text, ids in zip(texts, ours.encode_batch(texts)):
        assert ours.decode(ids.tolist()) == text
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids.tolist() == ours.encode(text)
        assert theirs.decode(ids.tolist(), skip_special_tokens=True) == text
    assert theirs("x")["input_ids"] == [ours.bos_id, *ours.encode("x")]
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.vocab_size) == (0, 1, 2, 700)
    assert [ours.piece(token) for token in (3, 4, 5)] == ["<|im_start|>", "<|reserved_0|>", "<|reserved_1|>"]
    assert 3 not in ours.encode("<|im_start|>")


def test_byte_bpe_is_deterministic(byte_bpe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = list(stdlib_documents())
    shards = [shard(tmp_path, documents[::-2], "x"), shard(tmp_path, documents[-2::-2], "y")]
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    train_tokenizer(BYTE_BPE, shards, tmp_path / "again")
    again = tree(tmp_path / "again")
    assert again == {name: tree(byte_bpe)[name] for name in again}


def test_digits_and_white_space_follow_the_rule(tmp_path: Path) -> None:
    text = "".join(f"{' ' * (4 * (n % 4))}total{n % 7} = {1990 + n % 40}\n" for n in range(2000))
    path = [shard(tmp_path, [*stdlib_documents(10), *(Document(id=f"{n}", text=text, source="s") for n in range(6))])]

    def pieces(line: str, **rules: Any) -> list[str]:
        config = TokenizerConfig(vocab_size=600, sample_bytes=10**6, num_threads=1, **rules)
        tokenizer = train_tokenizer(config, path, tmp_path / str(sorted(rules.items())))
        return [tokenizer.decode([token]) for token in tokenizer.encode(line)]

    for kind in ("bpe", "byte_bpe"):
        assert [p for p in pieces("1999", kind=kind) if p.strip()] == ["1", "9", "9", "9"]
        assert len(pieces("1999", kind=kind, digits="free")) < 4
        assert max(map(len, pieces("\n        total1", kind=kind)), default=0) >= 7
        assert not [p for p in pieces("        total1", kind=kind, whitespace="single") if len(p) > 1 and p.isspace()]
    assert pieces("1999", kind="byte_bpe", digits="threes") == ["199", "9"]


def test_bad_input_is_one_clear_line(three: Path, tmp_path: Path) -> None:
    small = replace(BYTE_BPE, vocab_size=20_000)
    cases: list[tuple[Any, str]] = [
        (
            lambda: balanced_texts([three], 1000, 0, 0.3, ("en", "xx", "yy")),
            "no training text in xx, yy; there is text in el, en, ka",
        ),
        (lambda: covered_texts(["abc"], 1.0, {"CJK": 0.9}), "no character of script 'CJK' .* it has LATIN"),
        (lambda: train_tokenizer(small, [three], tmp_path / "t"), "vocab_size=20000: .* support at most .* lower"),
        (
            lambda: train_tokenizer(TokenizerConfig(vocab_size=357, character_coverage=1.0), [three], tmp_path / "t"),
            "vocab_size=357 is below the .* single-character pieces that this text needs; raise it",
        ),
        (lambda: replace(BYTE_BPE, vocab_size=260), "vocab_size=260 leaves no room beside 262 special, byte"),
        (lambda: replace(BYTE_BPE, script_coverage=(("CJK", 0.9),)), "no meaning for byte_bpe"),
        (lambda: TokenizerConfig(digits="threes"), "'threes' is for byte_bpe; bpe knows"),
        (lambda: TokenizerConfig(digits="none"), "tokenizer.digits='none': expected 'single', 'threes' or 'free'"),  # type: ignore[arg-type]
        (lambda: TokenizerConfig(language_alpha=-1), "language_alpha=-1: expected 0"),
        (lambda: TokenizerConfig(special_tokens=("<a>", "<a>")), "expected different names"),
        (lambda: TokenizerConfig(script_coverage=(("CJK", 0),)), "the coverage of CJK is 0"),
    ]
    for call, expected in cases:
        with pytest.raises(ValueError, match=expected) as caught:
            call()
        assert "\n" not in str(caught.value)
