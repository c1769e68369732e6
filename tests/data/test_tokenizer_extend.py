"""An extended tokenizer: fewer tokens in the new language, the same ids everywhere else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from data import steps
from data.document import Document
from data.steps import token_steps
from data.tables import write_documents
from data.tokenizer import Tokenizer, load_tokenizer
from data.tokenizer_config import TokenizerConfig
from data.tokenizer_extend import TokenizerExtension, extend_bpe, extend_tokenizer
from data.tokenizer_train import train_tokenizer
from tests.data.test_tokenizer import TRICKY
from tests.data.token_data import stdlib_documents

GREEK = [
    "όλοι", "οι", "άνθρωποι", "γεννιούνται", "ελεύθεροι", "και", "ίσοι", "στην", "αξιοπρέπεια", "και", "τα",
    "δικαιώματα", "είναι", "προικισμένοι", "με", "λογική", "και", "συνείδηση",
]  # fmt: skip


def greek(first: int, count: int) -> list[str]:
    return [" ".join(GREEK[(first + n * step) % len(GREEK)] for step in range(1, 12)) for n in range(count)]


@dataclass(frozen=True, kw_only=True)
class Copied:
    """A tokenizer folder as it is."""

    folder: Path

    def write(self, folder: Path) -> None:
        load_tokenizer(self.folder).save(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_documents(folder / "documents.parquet", stdlib_documents(30))
    train_tokenizer(TokenizerConfig(kind="byte_bpe", vocab_size=800), [folder / "documents.parquet"], folder / "base")
    return folder


@pytest.fixture(scope="module")
def extended(base: Path) -> Path:
    english = [Document(id=f"en/{n}", text=d.text, source="s", meta={"language": "en"})
               for n, d in enumerate(stdlib_documents(30))]  # fmt: skip
    target = [Document(id=f"el/{n}", text=t, source="s", meta={"language": "el"}) for n, t in enumerate(greek(0, 60))]
    write_documents(base / "both.parquet", [*english, *target])
    config = TokenizerExtension(base=Copied(folder=base / "base"), languages=("el",), new_pieces=100)
    assert extend_tokenizer(config, [base / "both.parquet"], base / "extended") == 100
    return base / "extended"


def both(base: Path, extended: Path) -> tuple[Tokenizer, Tokenizer]:
    return load_tokenizer(base / "base"), load_tokenizer(extended)


def test_the_new_language_costs_less_and_comes_back(base: Path, extended: Path) -> None:
    old, new = both(base, extended)
    assert new.vocab_size == old.vocab_size + 100
    for text in greek(7, 20):
        assert len(new.encode(text)) < len(old.encode(text)) / 2
        assert new.decode(new.encode(text)) == text


def test_ids_of_other_text_and_old_pieces_stay(base: Path, extended: Path) -> None:
    old, new = both(base, extended)
    for token in range(old.vocab_size):
        assert new.piece(token) == old.piece(token)
    ascii_tricky = [text for text in TRICKY if text.isascii()]
    for text in [*ascii_tricky, *(document.text for document in stdlib_documents(60)[::7])]:
        assert new.encode(text) == old.encode(text)
    mixed = "def f(): # " + greek(0, 1)[0] + "\n    return 1"
    assert new.decode(new.encode(mixed)) == mixed


def test_transformers_reads_the_extension(extended: Path) -> None:
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(extended), load_tokenizer(extended)
    for text in [*TRICKY, *greek(3, 5)]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)


def test_equal_input_gives_equal_bytes(base: Path, extended: Path) -> None:
    config = TokenizerExtension(base=Copied(folder=base / "base"), languages=("el",), new_pieces=100)
    extend_tokenizer(config, [base / "both.parquet"], base / "again")
    assert (base / "again" / "tokenizer.json").read_bytes() == (extended / "tokenizer.json").read_bytes()


def test_a_language_in_the_same_script_gets_only_pieces_with_new_letters(base: Path) -> None:
    spec = json.loads((base / "base" / "tokenizer.json").read_text())
    german = ["die größte Straße führt über Brücken für Fußgänger"] * 3
    found, count = extend_bpe(spec, german, ["the largest street leads over bridges"], 50)
    fresh = list(found["model"]["vocab"])[-count:]
    assert count and all(any(ord(character) > 127 for character in piece.replace("Ġ", "")) for piece in fresh)


def test_the_key_follows_the_files_of_the_base_and_the_version(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_tokenizer(base / "base").save(tmp_path)
    copied = Copied(folder=tmp_path)
    extension = TokenizerExtension(base=copied, languages=("el",))

    def keys() -> list[str]:
        return [token_steps(tmp_path, tokenizer, 0, [])[0].key for tokenizer in (copied, extension)]

    first = keys()
    assert keys() == first
    monkeypatch.setattr(steps, "EXTENSION_VERSION", steps.EXTENSION_VERSION + 1)
    assert [a == b for a, b in zip(keys(), first)] == [True, False]
    monkeypatch.undo()
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    spec["model"]["merges"] = spec["model"]["merges"][:-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))  # another tokenizer at the same place
    assert not set(keys()) & set(first)


def test_bad_input_is_one_line(base: Path, extended: Path, tmp_path: Path) -> None:
    train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=600), [base / "documents.parquet"], tmp_path / "other")
    cases = [
        (lambda: TokenizerExtension(base=Copied(folder=base), languages=()), "expected at least one language"),
        (
            lambda: extend_tokenizer(
                TokenizerExtension(base=Copied(folder=base / "base"), languages=("el", "xx")),
                [base / "both.parquet"],
                tmp_path / "x",
            ),
            "no training text in xx",
        ),
        (
            lambda: extend_bpe(json.loads((tmp_path / "other" / "tokenizer.json").read_text()), ["α"], [], 5),
            "only byte-level BPE can be extended",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
